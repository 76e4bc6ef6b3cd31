"""What bad parameters, gradients, groups and models get.

Every error says which parameter or group, what it is and what is allowed, and comes before anything
has changed. Option values: test_bad_input.py. State dicts: test_bad_state_dict.py.
"""

import erlangen
import pytest
import torch
from conftest import needs_gpu
from state_helpers import Picture, live_optimizer, params_of, raises
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

RULES = ["spectral", "right_spectral", "left_spectral", "row_norm", "column_norm", "hybrid"]


def parameter(*shape, **kwargs):
    return nn.Parameter(torch.randn(*(shape or (8, 6)), **kwargs))


@pytest.fixture
def live(device):
    return live_optimizer(device)


# ---- Parameters


def sparse_parameter():
    return nn.Parameter(torch.eye(4).to_sparse())


def integer_parameter():
    return nn.Parameter(torch.ones(4, 4, dtype=torch.int32), requires_grad=False)


BAD_PARAMS = {
    "1-D": ("spectral", lambda: parameter(8), ValueError, ["[8]", "two dimensions", "adamw"]),
    "scalar": ("row_norm", lambda: nn.Parameter(torch.ones(())), ValueError, ["[]", "adamw"]),
    # What FSDP1 and ZeRO leave of a matrix.
    "flattened shard": (
        "spectral",
        lambda: parameter(48),
        ValueError,
        ["FSDP1", "DeepSpeed's ZeRO", "DDP"],
    ),
    "sparse": ("adamw", sparse_parameter, TypeError, ["parse", "dense"]),
    "integer": ("spectral", integer_parameter, TypeError, ["Int", "float32", "bfloat16"]),
    "complex": (
        "spectral",
        lambda: parameter(4, 4, dtype=torch.complex64),
        TypeError,
        ["omplex", "float32"],
    ),
    "complex adamw": (
        "adamw",
        lambda: parameter(4, 4, dtype=torch.complex64),
        TypeError,
        ["omplex", "float32"],
    ),
    "float8": (
        "spectral",
        lambda: nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn)),
        TypeError,
        ["Float8", "float32"],
    ),
    "overlap": (
        "row_norm",
        lambda: nn.Parameter(torch.randn(8, 1).expand(8, 6)),
        ValueError,
        ["one place of memory", "[8, 6]", "[1, 0]"],
    ),
    "no tensor": ("spectral", lambda: [1.0, 2.0], TypeError, ["list"]),
}


@pytest.mark.parametrize("case", BAD_PARAMS.values(), ids=BAD_PARAMS.keys())
def test_parameter(case, live):
    rule, make, error, words = case
    bad = make()
    where = [] if isinstance(bad, list) else ["param_groups[0], parameter 1"]
    first = parameter()
    raises(
        error,
        words + where,
        lambda: erlangen.Equivariant([{"params": [first, bad], "rule": rule}]),
    )
    before = Picture(live)
    where = [] if isinstance(bad, list) else ["param_groups[3], parameter 0"]
    raises(error, words + where, lambda: live.add_param_group({"params": [bad], "rule": rule}))
    Picture(live).assert_same(before)


@pytest.mark.parametrize("rule", RULES)
def test_matrix_rule_names_the_vector(rule):
    model = nn.Linear(4, 8)
    groups = [{"params": list(model.named_parameters()), "rule": rule}]
    raises(ValueError, ["parameter 1 (bias)", "[8]"], lambda: erlangen.Equivariant(groups))


def test_non_leaf():
    raises(
        (ValueError, TypeError),
        ["leaf"],
        lambda: erlangen.RowNorm([parameter() * 2]),
    )


@pytest.mark.parametrize("step", [{"heads": 3, "dim": -2}, {"sections": [4, 5], "dim": -1}])
def test_layout_that_one_parameter_does_not_fit(step, live):
    group = {"params": [parameter(9, 9), parameter()], "rule": "spectral", "layout": [step]}
    before = Picture(live)
    raises(
        ValueError, ["param_groups[3], parameter 1", "layout"], lambda: live.add_param_group(group)
    )
    Picture(live).assert_same(before)


# ---- Groups


def test_parameter_twice(live):
    p = parameter()
    within = [{"params": [p, parameter(), p], "rule": "spectral"}]
    across = [{"params": [p], "rule": "spectral"}, {"params": [parameter(), p], "rule": "row_norm"}]
    both = ["param_groups[0], parameter 0"]
    raises(
        ValueError,
        [*both, "param_groups[0], parameter 2", "once"],
        lambda: erlangen.Equivariant(within),
    )
    raises(
        ValueError,
        [*both, "param_groups[1], parameter 1", "once"],
        lambda: erlangen.Equivariant(across),
    )
    before = Picture(live)
    raises(
        ValueError,
        ["param_groups[1], parameter 0", "param_groups[3], parameter 1", "once"],
        lambda: live.add_param_group(
            {"params": [parameter(), params_of(live)[2]], "rule": "spectral"}
        ),
    )
    Picture(live).assert_same(before)


BAD_GROUPS = {
    "without a rule": (lambda: {"params": [parameter()]}, ValueError, ["rule", "spectral"]),
    "unknown option": (
        lambda: {"params": [parameter()], "rule": "spectral", "momentun": 0.5},
        ValueError,
        ["momentun", "did you mean 'momentum'"],
    ),
    "without params": (lambda: {"rule": "spectral"}, ValueError, ["params"]),
    "a model": (
        lambda: {"params": nn.Sequential(nn.Linear(2, 2)), "rule": "spectral"},
        TypeError,
        ["params is a Sequential", "parameters()"],
    ),
    "a dict": (
        lambda: {"params": {"w": parameter()}, "rule": "spectral"},
        TypeError,
        ["params is {'w'", "a list"],
    ),
    "a set": (lambda: {"params": {parameter()}, "rule": "spectral"}, TypeError, ["order"]),
    "None": (lambda: {"params": None, "rule": "spectral"}, TypeError, ["params is None", "list"]),
    "a word": (lambda: {"params": "abc", "rule": "spectral"}, TypeError, ["params is 'abc'"]),
    "a list": (lambda: [parameter()], TypeError, ["dict", "list"]),
}


@pytest.mark.parametrize("case", BAD_GROUPS.values(), ids=BAD_GROUPS.keys())
def test_group(case, live):
    make, error, words = case
    where = (
        [] if "order" in words else ["param_groups[1]", "param_groups[3]"]
    )  # torch's own message
    if isinstance(make(), dict):
        good = {"params": [parameter()], "rule": "row_norm"}
        raises(error, [*words, *where[:1]], lambda: erlangen.Equivariant([good, make()]))
    before = Picture(live)
    raises(error, [*words, *where[1:]], lambda: live.add_param_group(make()))
    Picture(live).assert_same(before)


def test_unknown_option_of_constructor():
    raises(
        ValueError,
        ["Muon", "learning_rate", "lr", "momentum"],
        lambda: erlangen.Muon([parameter()], learning_rate=1.0),
    )


@pytest.mark.parametrize("key", ["anything", "initial_lr"])
def test_keys_added_later_are_ignored(key, live):
    live.param_groups[0][key] = object()
    live.step()


def test_bare_parameters():
    words = ["rule", "param_groups", "Muon"]
    p = parameter()
    raises(ValueError, words, lambda: erlangen.Equivariant([p]))
    raises(ValueError, words, lambda: erlangen.Equivariant(nn.Linear(2, 2).parameters()))
    raises(ValueError, words, lambda: erlangen.Equivariant([("weight", p)]))
    raises(TypeError, ["tensor", "groups"], lambda: erlangen.Equivariant(p))
    group = {"params": [p], "rule": "spectral"}
    raises(TypeError, ["a dict", "list of groups"], lambda: erlangen.Equivariant(group))


@pytest.mark.parametrize("cls", [erlangen.Equivariant, erlangen.Muon, erlangen.Hybrid])
def test_no_parameters(cls):
    raises(ValueError, ["empty"], lambda: cls([]))
    raises(ValueError, ["empty"], lambda: cls(iter(())))


def test_model_with_undecided_tensors():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = parameter()
            self.inner = nn.Module()
            self.inner.table = parameter(5, 3)
            self.known = nn.Linear(4, 4)

    raises(
        ValueError,
        ["mixing", "inner.table", "overrides"],
        lambda: erlangen.Equivariant(Strange(), strict=True),
    )


def test_model_without_parameters():
    raises(ValueError, ["param"], lambda: erlangen.Equivariant(nn.ReLU()))


# ---- Gradients, and parameters that changed


@pytest.mark.parametrize("index", range(5), ids=["spectral", "4x4", "row_norm", "vector", "adamw"])
class TestStep:
    def refused(self, live, error, words):
        before = Picture(live)
        raises(error, words, live.step)
        Picture(live).assert_same(before)

    def where(self, index):
        role = ["", "", "", " (role other)", " (role other)"][index]
        return f"param_groups[{[0, 0, 1, 2, 2][index]}]{role}, parameter {[0, 1, 0, 0, 1][index]}"

    def test_shape_changed(self, index, live):
        p = params_of(live)[index]
        p.data = p.data.new_ones((3,) * p.dim())
        self.refused(live, ValueError, [self.where(index), "gradient", "3"])

    def test_state_of_another_shape(self, index, live):
        p = params_of(live)[index]
        p.grad = None
        p.data = p.data.new_ones((3,) * p.dim())
        p.grad = torch.ones_like(p)
        self.refused(live, ValueError, [self.where(index), "state", "3"])

    def test_sparse_gradient(self, index, live):
        p = params_of(live)[index]
        p.grad = torch.ones_like(p).to_sparse()
        self.refused(live, TypeError, [self.where(index), "parse", "dense"])

    def test_state_on_another_device(self, index, live):
        p = params_of(live)[index]
        for name in ("momentum_buffer", "exp_avg"):
            if name in live.state[p]:
                live.state[p][name] = live.state[p][name].to("meta")
        before = [q.detach().clone() for q in params_of(live)]
        raises(ValueError, [self.where(index), "state", "meta"], live.step)
        assert all(map(torch.equal, params_of(live), before))

    def test_no_gradient_skips(self, index, live):
        before = Picture(live)
        params_of(live)[index].grad = None
        live.step()
        after = Picture(live)
        assert torch.equal(after.params[index], before.params[index])
        for name, value in before.states[index].items():
            assert torch.equal(after.states[index][name], value)
        assert not any(
            torch.equal(after.params[i], before.params[i]) for i in range(5) if i != index
        )


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_gradient_of_another_type(dtype, live):
    p = params_of(live)[2]
    p.grad_dtype = None  # torch itself refuses it otherwise
    p.grad = torch.ones_like(p, dtype=dtype)
    before = Picture(live)
    raises(TypeError, ["param_groups[1], parameter 0", "gradient", "allowed: float32"], live.step)
    Picture(live).assert_same(before)


@pytest.mark.parametrize("rule", ["spectral", "row_norm", "hybrid", "adamw"])
def test_tensors_of_inference_mode(rule, device):
    with torch.inference_mode():
        inference = nn.Parameter(torch.ones(4, 4, device=device))
    plain = nn.Parameter(torch.ones(4, 4, device=device))
    optimizers = [erlangen.Equivariant([{"params": [p], "rule": rule}]) for p in (inference, plain)]
    for p in (inference, plain):
        p.grad = torch.eye(4, device=device)
    with torch.inference_mode():
        optimizers[1].step()  # its state is made there
    for optimizer in optimizers:
        before = Picture(optimizer)
        raises(ValueError, ["param_groups[0], parameter 0", "inference_mode"], optimizer.step)
        Picture(optimizer).assert_same(before)


@needs_gpu
@pytest.mark.parametrize("rule", ["spectral", "row_norm", "adamw"])
def test_gradient_on_another_device(rule):  # without a GPU: tests/cpp/bad_tensors_test.cpp
    p = parameter()
    optimizer = erlangen.Equivariant([{"params": [p], "rule": rule}])
    p.grad = torch.ones_like(p)
    p.data = p.data.cuda()
    before = Picture(optimizer)
    raises(ValueError, ["param_groups[0], parameter 0", "cpu", "cuda"], optimizer.step)
    Picture(optimizer).assert_same(before)


@pytest.mark.parametrize("rule", [*RULES, "adamw"])
def test_parameter_becomes_a_subclass_after_the_first_step(rule):
    """As fully_shard does, which swaps a module's parameters for DTensors."""
    p = parameter()
    optimizer = erlangen.Equivariant([{"params": [p], "rule": rule}])
    p.grad = torch.ones_like(p)
    optimizer.step()
    wrapped = nn.Parameter(TwoTensor(p.detach().clone(), p.detach().clone()))
    wrapped.grad = TwoTensor(torch.ones(8, 6), torch.ones(8, 6))
    optimizer.param_groups[0]["params"][0] = wrapped
    before = wrapped.a.clone()
    raises(TypeError, ["param_groups[0], parameter 0", "subclass", "DTensor"], optimizer.step)
    assert torch.equal(wrapped.a, before) and wrapped not in optimizer.state


def test_names_of_another_number_than_the_parameters():
    raises(
        ValueError,
        ["param_groups[0]", "1 names for 2 parameters"],
        lambda: erlangen.RowNorm([{"params": [parameter(), parameter()], "param_names": ["w"]}]),
    )


def test_names_of_a_larger_group():
    """As ZeroRedundancyOptimizer gives them, with some of the group's parameters."""
    group = {"params": [parameter()], "param_names": ["a", "b"], "rule": "row_norm"}
    optimizer = erlangen.Equivariant([group])
    assert "group 0 [0]" in optimizer.explain() and "a" not in optimizer.explain().split()
    assert optimizer.param_groups[0]["param_names"] == ["a", "b"]
    params_of(optimizer)[0].grad = torch.ones(8, 6).to_sparse()
    raises(TypeError, ["param_groups[0], parameter 0: the gradient"], optimizer.step)


def test_groups_options_are_no_options_of_the_constructor():
    for name, value in {"role": "router", "param_names": ["w"]}.items():
        group = {"params": [parameter()], "rule": "row_norm"}
        raises(ValueError, [name], lambda group=group, o={name: value}: make([group], **o))


def make(groups, **options):
    return erlangen.Equivariant(groups, **options)


def test_any_error_in_a_new_group_leaves_the_old_ones():
    optimizer = erlangen.RowNorm([parameter()])
    group = {"params": [parameter()], "lr": torch.empty((), device="meta")}
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("preset", ["Muon", "PolarGrad", "RowNorm"])
def test_a_model_has_more_than_one_rule(preset):
    cls = getattr(erlangen, preset)
    raises(TypeError, [preset, "Equivariant(model)"], lambda: cls(nn.Linear(4, 4)))


def test_first_step_with_a_bad_gradient():
    good, bad = parameter(), parameter()
    optimizer = erlangen.RowNorm([good, bad])
    good.grad, bad.grad = torch.ones(8, 6), torch.ones(8, 6).to_sparse()
    before = Picture(optimizer)
    raises(TypeError, ["param_groups[0], parameter 1"], optimizer.step)
    Picture(optimizer).assert_same(before)
    assert not optimizer.state
