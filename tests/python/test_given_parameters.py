"""The forms in which parameters and values are given: empty ones, iterators, containers of torch's,
and lists, dicts and numbers of other libraries."""

import copy
import io
from collections import UserList
from types import MappingProxyType

import erlangen
import numpy
import pytest
import torch
from state_helpers import Picture, gradients, params_of, raises, run, same_bits
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

RULES = ["spectral", "right_spectral", "left_spectral", "row_norm", "column_norm", "hybrid"]
RULES += ["adamw"]


def parameter(*shape):
    return nn.Parameter(torch.randn(shape or (8, 6)))


# ---- Nothing to do


@pytest.mark.parametrize("place", [0, 1, 2])
def test_empty_groups(place):
    """As torch takes them; they are saved, loaded and explained, and change nothing."""
    p, q = parameter(), parameter(8)
    groups = [{"params": [p], "rule": "spectral"}, {"params": [q], "rule": "adamw"}]
    plain = copy.deepcopy(erlangen.Equivariant(groups))
    groups.insert(place, {"params": iter(()), "rule": "row_norm"})
    optimizer = erlangen.Equivariant(groups)
    optimizer.add_param_group({"params": [], "rule": "spectral"})
    assert all(map(same_bits, run(optimizer, 2, gradients()), run(plain, 2, gradients())))
    other = copy.deepcopy(optimizer)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(map(same_bits, run(optimizer, 2, gradients()), run(other, 2, gradients())))
    assert optimizer.explain().count("\n") == 3


def test_only_an_empty_group():
    optimizer = erlangen.Muon([{"params": []}])
    optimizer.step()
    assert not optimizer.state


def test_empty_groups_where_the_others_have_names():
    p = parameter()
    optimizer = erlangen.RowNorm([{"params": [("w", p)]}, {"params": []}])
    assert optimizer.param_groups[1]["param_names"] == []
    run(optimizer, 1, gradients())
    optimizer.load_state_dict(optimizer.state_dict())


class Hollow(nn.Module):
    """Tensors without elements beside one that has some."""

    def __init__(self, dtype):
        super().__init__()
        shapes = {"full": (8, 6), "rows": (0, 6), "columns": (8, 0), "vector": (0,)}
        shapes["batch"] = (0, 4, 4)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_parameters_without_elements(rule, dtype):
    model = Hollow(dtype)
    alone = nn.Parameter(model.full.detach().clone())
    group = {"rule": rule, "stochastic_rounding": dtype == torch.bfloat16}
    layout = [] if rule == "adamw" else [{"heads": 2, "dim": -2}]

    def make(params):
        return erlangen.Equivariant([{"params": params, "layout": layout, **group}], lr=0.02)

    optimizer, reference = make(list(model.parameters())), make([alone])
    generator = gradients()
    for _ in range(3):
        g = torch.randn(8, 6, generator=generator).to(dtype)
        for p in model.parameters():
            p.grad = g if p is model.full else torch.zeros_like(p)
        alone.grad = g.clone()
        optimizer.step()
        reference.step()
    assert same_bits(model.full, alone)
    for p in model.parameters():
        moments = {k: v for k, v in optimizer.state[p].items() if k != "step"}
        assert moments and all(v.shape == p.shape for v in moments.values())
    lines = optimizer.explain().splitlines()
    assert sum(line.rstrip().endswith("-") for line in lines) == 4

    # torch.distributed.checkpoint wants a state of each.
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    twin = Hollow(dtype)
    twin.load_state_dict(model.state_dict())
    other = make(list(twin.parameters()))
    set_optimizer_state_dict(twin, other, saved)
    Picture(other).assert_same_tensors(Picture(optimizer))
    assert all(map(same_bits, run(optimizer, 2, gradients(4)), run(other, 2, gradients(4))))


# ---- Iterators and containers


@pytest.mark.parametrize(
    "form",
    [
        lambda p, q: (p, q),
        lambda p, q: (t for t in (p, q)),
        lambda p, q: {"p": p, "q": q}.values(),
        lambda p, q: nn.ParameterList([p, q]),
        lambda p, q: UserList([p, q]),
        lambda p, q: nn.ParameterDict({"p": p, "q": q}).values(),
        lambda p, q: iter([("p", p), ("q", q)]),
    ],
    ids=["tuple", "generator", "values", "ParameterList", "UserList", "ParameterDict", "named"],
)
@pytest.mark.parametrize("in_group", [False, True])
def test_forms_of_a_list(form, in_group):
    p, q = parameter(), parameter(4, 8)
    given = form(p, q)
    optimizer = erlangen.Muon([{"params": given}] if in_group else given)
    assert [id(t) for t in params_of(optimizer)] == [id(p), id(q)]
    run(optimizer, 1, gradients())


def test_parameter_list_with_a_rule():
    optimizer = erlangen.Equivariant(nn.ParameterList([parameter()]), rule="row_norm")
    assert optimizer.param_groups[0]["rule"] == "row_norm"


@pytest.mark.parametrize("cls", [erlangen.Equivariant, erlangen.Muon])
def test_lists_of_models(cls):
    for models in ([nn.Linear(2, 2), nn.Linear(2, 2)], [nn.Linear(2, 2), parameter()]):
        raises(TypeError, [cls.__name__, "ModuleList([a, b])"], lambda m=models: cls(m))
    optimizer = erlangen.Equivariant(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    assert len(params_of(optimizer)) == 4


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_have_no_order(kind):
    raises(TypeError, ["Muon", "a set"], lambda: erlangen.Muon(kind([parameter()])))
    group = {"params": kind([parameter()])}
    raises(TypeError, ["param_groups[0]", "a set", "order"], lambda: erlangen.Muon([group]))


# ---- Values of other libraries


class ListLike:
    """As omegaconf's ListConfig: no list, and nothing that says that it is a sequence."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class DictLike:
    """As its DictConfig."""

    def __init__(self, **items):
        self.items = items

    def keys(self):
        return self.items.keys()

    def __getitem__(self, key):
        return self.items[key]


LAYOUT = [{"sections": [2, 6], "dim": -2}]
VALUES = {
    "betas": [(ListLike(0.5, 0.75), [0.5, 0.75]), (numpy.array([0.5, 0.75]), [0.5, 0.75])],
    "layout": [
        (ListLike(DictLike(sections=ListLike(2, 6), dim=-2)), LAYOUT),
        ([DictLike(sections=[2, 6], dim=-2)], LAYOUT),
        ((MappingProxyType(LAYOUT[0]),), LAYOUT),
        (UserList([{"sections": range(2, 7, 4), "dim": -2}]), LAYOUT),
    ],
    "ns_coefficients": [(ListLike(ListLike(1.5, -0.5, 0.0)), [[1.5, -0.5, 0.0]])],
    "lr": [(numpy.float64(0.5), 0.5), (numpy.float32(0.5), 0.5), (numpy.array(0.5), 0.5)],
    "seed": [(numpy.int64(3), 3)],
    "ns_steps": [(numpy.int32(3), 3)],
}
CASES = [
    pytest.param(key, *case, id=f"{key} {i}")  # named alike in every process
    for key, cases in VALUES.items()
    for i, case in enumerate(cases)
]


@pytest.mark.parametrize("how", ["argument", "group", "added"])
@pytest.mark.parametrize(("key", "value", "plain"), CASES)
def test_values_of_other_libraries(key, value, plain, how):
    """Kept as Python's own, so that checkpoints of them load with weights_only."""
    rule = "adamw" if key == "betas" else "spectral"
    p, q = parameter(), parameter()
    q.data.copy_(p)
    group = {"params": [p], "rule": rule}
    if how == "argument":
        optimizer = erlangen.Equivariant([group], **{key: value})
    elif how == "group":
        optimizer = erlangen.Equivariant([{**group, key: value}])
    else:
        optimizer = erlangen.Equivariant([{**group, "params": [parameter()]}])
        optimizer.add_param_group({**group, key: value})
    kept = optimizer.param_groups[-1][key]
    assert list(kept) == plain if isinstance(plain, list) else kept == plain
    assert type(kept) in (float, int, list, tuple)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)
    other = erlangen.Equivariant([{"params": [q], "rule": rule, key: plain}])
    a, b = run(optimizer, 2, gradients(1)), None
    if how != "added":
        b = run(other, 2, gradients(1))
        assert same_bits(a[0], b[0])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("betas", {0.9, 0.95}, ["of type set"]),
        ("betas", object(), ["of type object"]),
        ("betas", ListLike(0.9), ["two numbers"]),
        ("layout", b"heads", ["of type bytes"]),
        ("layout", ListLike(ListLike()), ["layout"]),
    ],
    ids=range(5),
)
def test_values_of_no_kind(key, value, words):
    group = {"params": [parameter()], "rule": "spectral"}
    raises(TypeError, [key, *words], lambda: erlangen.Equivariant([group], **{key: value}))
    raises(
        TypeError,
        ["param_groups[0]", key, *words],
        lambda: erlangen.Equivariant([{**group, key: value}]),
    )
