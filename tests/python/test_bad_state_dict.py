"""A state dict that does not fit is refused; parameters, state and groups stay as they were."""

import copy

import erlangen
import pytest
import torch
from state_helpers import Picture, gradients, live_optimizer, raises, run
from torch import nn


@pytest.fixture
def live(device):
    return live_optimizer(device)


def change(function):
    def changed(state_dict):
        function(state_dict)
        return state_dict

    return changed


def set_path(*path_and_value):
    *path, key, value = path_and_value

    def function(state_dict):
        for entry in path:
            state_dict = state_dict[entry]
        state_dict[key] = value

    return change(function)


BAD_STATE_DICTS = {
    "no groups": (lambda s: {"state": s["state"]}, ["param_groups"]),
    "no state": (lambda s: {"param_groups": s["param_groups"]}, ["state"]),
    "a group less": (change(lambda s: s["param_groups"].pop()), ["group"]),
    "a group more": (change(lambda s: s["param_groups"].append(s["param_groups"][0])), ["group"]),
    "a parameter less": (change(lambda s: s["param_groups"][0]["params"].pop()), ["group"]),
    "group without params": (change(lambda s: s["param_groups"][0].pop("params")), ["params"]),
    "params that are no list": (set_path("param_groups", 1, "params", 3), ["[1]", "list of"]),
    "a group that is none": (set_path("param_groups", 1, 3), ["param_groups[1]", "3", "dict"]),
    "groups that are none": (set_path("param_groups", 3), ["param_groups", "list"]),
    "momentum of another shape": (
        set_path("state", 0, "momentum_buffer", torch.ones(6, 8)),
        ["param_groups[0], parameter 0", "momentum_buffer", "[6, 8]", "[8, 6]"],
    ),
    "moment of another shape": (
        set_path("state", 4, "exp_avg_sq", torch.ones(6, 8)),
        ["param_groups[2] (role other), parameter 1", "exp_avg_sq", "[6, 8]"],
    ),
    "step of another shape": (
        set_path("state", 3, "step", torch.ones(2)),
        ["param_groups[2] (role other), parameter 0", "step", "[2]"],
    ),
    "no momentum": (
        change(lambda s: s["state"].update({0: {"exp_avg": torch.ones(8, 6)}})),
        ["param_groups[0], parameter 0", "momentum_buffer", "spectral"],
    ),
    "no second moment": (
        change(lambda s: s["state"][3].pop("exp_avg_sq")),
        ["param_groups[2] (role other), parameter 0", "exp_avg_sq", "adamw"],
    ),
    "negative step": (
        set_path("state", 3, "step", torch.tensor(-5.0)),
        ["param_groups[2] (role other), parameter 0", "step is -5", ">= 0"],
    ),
    "step that is NaN": (
        set_path("state", 3, "step", torch.tensor(float("nan"))),
        ["param_groups[2] (role other), parameter 0", "step is nan", ">= 0"],
    ),
    "state of a parameter that is not there": (
        set_path("state", 999, {"momentum_buffer": torch.ones(8, 6)}),
        ["state 999", "no parameter"],
    ),
    "no step": (change(lambda s: s["state"][3].pop("step")), ["step", "adamw"]),
    "momentum that is no tensor": (
        set_path("state", 0, "momentum_buffer", 3.0),
        ["param_groups[0], parameter 0", "momentum_buffer"],
    ),
    "integer momentum": (
        set_path("state", 0, "momentum_buffer", torch.ones(8, 6, dtype=torch.int64)),
        ["param_groups[0], parameter 0", "momentum_buffer"],
    ),
    "momentum of a byte": (
        set_path("state", 0, "momentum_buffer", torch.ones(8, 6).to(torch.float8_e4m3fn)),
        ["param_groups[0], parameter 0", "momentum_buffer", "float32, float64, bfloat16, float16"],
    ),
    "momentum of few entries in many places": (
        set_path("state", 0, "momentum_buffer", torch.ones(1, 6).expand(8, 6)),
        ["param_groups[0], parameter 0", "momentum_buffer", "each entry its own"],
    ),
    "sparse momentum": (
        set_path("state", 0, "momentum_buffer", torch.ones(8, 6).to_sparse()),
        ["param_groups[0], parameter 0", "momentum_buffer"],
    ),
    "state that is no dict": (set_path("state", 0, torch.ones(8, 6)), []),
    "another rule": (
        set_path("param_groups", 0, "rule", "adamw"),
        ["param_groups[0]", "exp_avg", "adamw"],
    ),
}


@pytest.mark.parametrize("case", BAD_STATE_DICTS.values(), ids=BAD_STATE_DICTS.keys())
def test_state_dict(case, live):
    spoil, words = case
    other = copy.deepcopy(live)
    run(other, 1, gradients(9))  # so that a half load shows
    state_dict = spoil(copy.deepcopy(other.state_dict()))
    before = Picture(live)
    raises((ValueError, TypeError), words, lambda: live.load_state_dict(state_dict))
    Picture(live).assert_same(before)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda p: torch.optim.SGD([p], momentum=0.9), ["SGD", "average"]),
        (lambda p: torch.optim.SGD([p]), ["SGD"]),
        (lambda p: torch.optim.AdamW([p]), ["Adam", "spectral", "torch.optim.Muon"]),
        (lambda p: torch.optim.Muon([p]), ["torch.optim.Muon", "erlangen.Muon"]),
        (lambda p: torch.optim.Adam([p], weight_decay=0.1), ["AdamW"]),
        (lambda p: torch.optim.RAdam([p]), ["AdamW"]),
        (lambda p: torch.optim.RMSprop([p]), ["another optimizer's", "centered", "AdamW's"]),
        (lambda p: torch.optim.Adamax([p]), ["another optimizer's", "foreach", "AdamW's"]),
    ],
    ids=["momentum", "SGD", "AdamW", "Muon", "Adam", "RAdam", "RMSprop", "Adamax"],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_state_dict_of_another_optimizer(other, words, steps):
    """Whose options mean something else here, whether it has a state or not."""
    p = nn.Parameter(torch.randn(4, 4))
    other = other(p)
    run(other, steps, gradients())
    optimizer = erlangen.Equivariant([{"params": [p], "rule": "spectral"}])
    before = Picture(optimizer)
    raises(
        ValueError,
        ["param_groups[0]", *words],
        lambda: optimizer.load_state_dict(other.state_dict()),
    )
    Picture(optimizer).assert_same(before)


def test_options_that_a_state_dict_lacks():
    """They keep their value, a rule too; as in a dict made by hand."""
    optimizer = erlangen.RowNorm([nn.Parameter(torch.randn(4, 4))], lr=0.5)
    optimizer.load_state_dict({"state": {}, "param_groups": [{"params": (0,), "momentum": 0.5}]})
    (group,) = optimizer.param_groups
    assert (group["rule"], group["lr"], group["momentum"]) == ("row_norm", 0.5, 0.5)


def test_whole_checkpoint_instead_of_the_optimizers():
    optimizer = erlangen.RowNorm([nn.Parameter(torch.randn(4, 4))])
    whole = {"model": {}, "optimizer": optimizer.state_dict()}
    raises(ValueError, ["'param_groups'", "optimizer"], lambda: optimizer.load_state_dict(whole))


def test_state_dict_of_amsgrad():
    """The maximum that AMSGrad continues from is nothing that adamw groups have."""
    p = nn.Parameter(torch.randn(4, 4))
    other = torch.optim.AdamW([p], amsgrad=True)
    run(other, 1, gradients())
    optimizer = erlangen.Equivariant([{"params": [p], "rule": "adamw"}])
    before = Picture(optimizer)
    raises(
        ValueError,
        ["param_groups[0]", "max_exp_avg_sq", "amsgrad=False"],
        lambda: optimizer.load_state_dict(other.state_dict()),
    )
    # Without what says so in the group, as torch.distributed.checkpoint may hand it on.
    state_dict = other.state_dict()
    state_dict["param_groups"] = [{"params": [0]}]
    raises(
        ValueError,
        ["param_groups[0], parameter 0", "max_exp_avg_sq"],
        lambda: optimizer.load_state_dict(state_dict),
    )
    Picture(optimizer).assert_same(before)
