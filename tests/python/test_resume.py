"""A run that is saved and taken up again goes on with equal bits: state_dict, torch.save, deepcopy,
pickle. What torch itself does with optimizers (schedulers, scalers): test_torch_habits.py."""

import copy
import io
import json
import pickle
import warnings

import erlangen
import pytest
import torch
from state_helpers import Picture, gradients, params_of, run, same_bits, set_grads, values
from torch import nn
from trajectory_cases import PRECISIONS, RULES

STEPS = 3


def build(rule, precision, device, params=None):
    dtype, more = PRECISIONS[precision]
    if params is None:
        shapes = ((8, 6), (5, 4), (8, 6))
        params = [torch.randn(s, device=device).to(getattr(torch, dtype)) for s in shapes]
    params = [nn.Parameter(p.detach().clone()) for p in params]
    groups = [
        {"params": params[:2], **RULES[rule], **more},
        {"params": params[2:], **RULES[rule], **more, "lr": 0.1},
    ]
    return erlangen.Equivariant(groups, lr=0.02, weight_decay=0.1)


def through_file(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def by_state_dict(optimizer, rule, precision, device):
    other = build(rule, precision, device, params_of(optimizer))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares tensors otherwise
    return other


def by_file(optimizer, rule, precision, device):
    other = build(rule, precision, device, params_of(optimizer))
    other.load_state_dict(state_dict=through_file(optimizer.state_dict()))
    return other


def by_deepcopy(optimizer, *_):
    return copy.deepcopy(optimizer)


def by_pickle(optimizer, *_):
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("resume", [by_state_dict, by_file, by_deepcopy, by_pickle])
@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16_rounded", "bf16_all"])
@pytest.mark.parametrize("rule", RULES)
def test_resume(rule, precision, resume, device):
    optimizer = build(rule, precision, device)
    generator = gradients()
    run(optimizer, STEPS, generator)
    at_save = Picture(optimizer)
    other = resume(optimizer, rule, precision, device)
    resumed = Picture(other)
    resumed.assert_same_tensors(at_save)
    assert str(resumed.options) == str(at_save.options)

    generator_state = generator.get_state()
    run(optimizer, STEPS, generator)
    Picture(other).assert_same_tensors(at_save)  # nothing is shared
    generator.set_state(generator_state)
    run(other, STEPS, generator)
    Picture(other).assert_same_tensors(Picture(optimizer))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rule", RULES)
def test_dtypes_of_state(rule, precision, device):
    optimizer = build(rule, precision, device)
    run(optimizer, 1, gradients())
    param_dtype = params_of(optimizer)[0].dtype
    expected = torch.float64 if param_dtype == torch.float64 else torch.float32
    if "state_dtype" in PRECISIONS[precision][1]:
        expected = torch.bfloat16
    for opt in (optimizer, by_file(optimizer, rule, precision, device)):
        for state in opt.state.values():
            for name, tensor in state.items():
                assert tensor.dtype == (torch.float32 if name == "step" else expected)


def test_state_keeps_its_own_dtype_in_another_optimizer():
    """bfloat16 parameters take up the float32 momentum of float32 ones, and the other way round."""
    for one, other in (("fp32", "bf16"), ("bf16", "fp32"), ("bf16_state", "fp32")):
        optimizer = build("spectral", one, "cpu")
        run(optimizer, 1, gradients())
        target = build("spectral", other, "cpu")
        target.load_state_dict(optimizer.state_dict())
        for p, q in zip(params_of(optimizer), params_of(target), strict=True):
            name = "momentum_buffer"
            assert same_bits(optimizer.state[p][name], target.state[q][name])
        run(target, 1, gradients())


def test_state_dict_is_plain():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.LayerNorm(6))
    layout = [{"heads": 2, "dim": -2}]
    groups = erlangen.param_groups(model, overrides={"1.weight": {"layout": layout}})
    optimizer = erlangen.Equivariant(groups, ns_coefficients=[(1.5, -0.5, 0.0)])
    run(optimizer, 1, gradients())
    state_dict = optimizer.state_dict()
    assert json.loads(json.dumps(state_dict["param_groups"]))
    allowed = {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    for state in state_dict["state"].values():
        assert state.keys() <= allowed
        assert all(isinstance(v, torch.Tensor) for v in state.values())
    # Groups that went through JSON (tuples are lists then) load as well.
    state_dict["param_groups"] = json.loads(json.dumps(state_dict["param_groups"]))
    before = Picture(optimizer)
    optimizer.load_state_dict(state_dict)
    Picture(optimizer).assert_same_tensors(before)
    run(optimizer, 1, gradients())


def test_empty_state():
    optimizer = build("spectral", "fp32", "cpu")
    run(optimizer, 2, gradients())
    fresh = build("spectral", "fp32", "cpu")
    state_dict = through_file(fresh.state_dict())
    assert state_dict["state"] == {}
    optimizer.load_state_dict(state_dict)
    assert not optimizer.state
    run(optimizer, 1, gradients())
    assert len(optimizer.state) == 3


def test_state_of_some_parameters():
    optimizer = build("row_norm", "bf16_rounded", "cpu")
    set_grads(params_of(optimizer)[:1], gradients())
    optimizer.step()
    other = build("row_norm", "bf16_rounded", "cpu", params_of(optimizer))
    other.load_state_dict(through_file(optimizer.state_dict()))
    assert len(other.state) == 1
    assert all(map(same_bits, run(optimizer, 2, gradients(5)), run(other, 2, gradients(5))))


def test_options_come_with_the_checkpoint():
    optimizer = build("spectral", "fp32", "cpu")
    run(optimizer, 1, gradients())
    other = build("row_norm", "fp32", "cpu", params_of(optimizer))
    run(other, 1, gradients())  # its plan is made for row_norm
    for p, q in zip(params_of(other), params_of(optimizer), strict=True):
        p.data.copy_(q)
    other.load_state_dict(through_file(optimizer.state_dict()))
    assert other.param_groups[0]["rule"] == "spectral"
    assert all(map(same_bits, run(optimizer, 2, gradients(5)), run(other, 2, gradients(5))))


def test_older_checkpoint_without_a_newer_option():
    optimizer = build("spectral", "fp32", "cpu")
    run(optimizer, 1, gradients())
    state_dict = copy.deepcopy(optimizer.state_dict())
    for group in state_dict["param_groups"]:
        del group["update_scale"], group["ns_eps"]
    other = build("spectral", "fp32", "cpu", params_of(optimizer))
    other.load_state_dict(state_dict)
    assert other.param_groups[0]["update_scale"] == 1.0
    assert all(map(same_bits, run(optimizer, 1, gradients(5)), run(other, 1, gradients(5))))


def test_newer_checkpoint_with_an_unknown_key():
    optimizer = build("spectral", "fp32", "cpu")
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0]["an_option_of_tomorrow"] = 1
    optimizer.load_state_dict(state_dict)
    run(optimizer, 1, gradients())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_load_hooks(precision):
    optimizer = build("spectral", precision, "cpu")
    run(optimizer, 1, gradients())
    doubled = {p: s["momentum_buffer"] * 2 for p, s in optimizer.state.items()}
    calls = []

    def pre(opt, state_dict):
        calls.append("pre")
        state_dict = copy.deepcopy(state_dict)
        for state in state_dict["state"].values():
            state["momentum_buffer"] *= 2
        return state_dict

    optimizer.register_load_state_dict_pre_hook(pre)
    optimizer.register_load_state_dict_post_hook(lambda opt: calls.append("post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "post"]
    for p, momentum in doubled.items():
        assert same_bits(optimizer.state[p]["momentum_buffer"], momentum)


def test_options_that_a_checkpoint_lacks_keep_the_groups_value():
    """Not the constructor's: a group may have had a value of its own."""
    groups = [
        {"params": [nn.Parameter(torch.randn(4, 3))], "rule": "row_norm", "update_scale": 5.0}
    ]
    optimizer = erlangen.Equivariant(groups)
    run(optimizer, 1, gradients())
    old = optimizer.state_dict()
    del old["param_groups"][0]["update_scale"], old["param_groups"][0]["seed"]
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["update_scale"] == 5.0
    assert optimizer.param_groups[0]["seed"] == 0


def test_pickle_from_before_an_option_existed():
    optimizer = build("row_norm", "fp32", "cpu")
    run(optimizer, 1, gradients())
    state = optimizer.__getstate__()
    for options in (state["defaults"], *state["param_groups"]):
        del options["ns_eps"]
    old = copy.copy(optimizer)
    old.__setstate__(state)
    run(old, 1, gradients())


def test_an_optimizer_takes_its_own_checkpoint_back():
    """Rounding noise needs a step count, but only where something is rounded."""
    p = nn.Parameter(torch.randn(4, 3))
    optimizer = erlangen.RowNorm([p], stochastic_rounding=False)
    run(optimizer, 1, gradients())
    optimizer.param_groups[0]["stochastic_rounding"] = True
    optimizer.load_state_dict(optimizer.state_dict())
    run(optimizer, 1, gradients())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_post_load_hook_may_change_state(precision):
    optimizer = build("spectral", precision, "cpu")
    run(optimizer, 1, gradients())

    def zero(opt):
        for state in opt.state.values():
            state["momentum_buffer"].zero_()

    optimizer.register_load_state_dict_post_hook(zero)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not any(s["momentum_buffer"].any() for s in optimizer.state.values())


def test_state_dict_hooks():
    optimizer = build("spectral", "fp32", "cpu")
    calls = []
    optimizer.register_state_dict_pre_hook(lambda opt: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda opt, state_dict: calls.append("post"))
    optimizer.state_dict()
    assert calls == ["pre", "post"]


@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
def test_checkpoint_of_torch_muon(adjust_lr_fn):
    params = [nn.Parameter(torch.randn(s)) for s in ((12, 8), (8, 12))]
    options = {"lr": 0.03, "momentum": 0.9, "eps": 1e-6, "adjust_lr_fn": adjust_lr_fn}
    theirs = torch.optim.Muon(params, **options)
    run(theirs, 3, gradients())
    ours = erlangen.Muon([nn.Parameter(p.detach().clone()) for p in params], ns_dtype="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_state_dict(through_file(theirs.state_dict()))
    group = ours.param_groups[0]
    assert (group["lr"], group["momentum"], group["ns_eps"]) == (0.03, 0.9, 1e-6)
    assert group["rule"] == "spectral"
    assert group["adjust_lr_fn"] == (adjust_lr_fn or "original")
    for step in range(5):
        start = values(params)
        a, b = run(theirs, 1, gradients(step)), run(ours, 1, gradients(step))
        for p, q, s in zip(a, b, start, strict=True):
            # Both iterate in bfloat16, with products rounded in another order.
            assert torch.linalg.norm(p - q) < 0.02 * (step + 1) * torch.linalg.norm(p - s)
    again = erlangen.Muon([nn.Parameter(p.detach().clone()) for p in params_of(ours)])
    again.load_state_dict(through_file(ours.state_dict()))
    assert all(map(same_bits, run(ours, 2, gradients(9)), run(again, 2, gradients(9))))


@pytest.mark.parametrize("preset", ["Muon", "PolarGrad", "RowNorm", "RightSpectral", "Hybrid"])
def test_presets(preset):
    cls = getattr(erlangen, preset)
    optimizer = cls([nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6, 8))])
    run(optimizer, 2, gradients())
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    others.append(cls([nn.Parameter(p.detach().clone()) for p in params_of(optimizer)], lr=0.5))
    others[-1].load_state_dict(through_file(optimizer.state_dict()))
    assert all(type(other) is cls for other in others)
    expected = run(optimizer, 2, gradients(4))
    for other in others:
        assert all(map(same_bits, expected, run(other, 2, gradients(4))))
