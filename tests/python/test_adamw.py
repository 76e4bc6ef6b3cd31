"""adamw groups: one call of torch's fused kernel for all that agree, its update scale, and the step
count in the forms that torch's checkpoints have it in."""

import copy

import erlangen
import pytest
import torch
from bounds import roundoff
from state_helpers import Picture, gradients, params_of, raises, run, same_bits, set_grads
from torch import nn
from torch.profiler import ProfilerActivity, profile

SHAPES = [(8, 6), (5,), (), (3, 1, 4), (0,), (257,), (8, 6)]


def params(device, dtypes=(torch.float32,)):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(s).to(device, dtype)) for dtype in dtypes for s in SHAPES]


def adamw(tensors, cls=erlangen.Equivariant, **options):
    options = {"lr": 0.02, "weight_decay": 0.1, **options}
    return cls([{"params": tensors, "rule": "adamw"}], **options)


def fused_calls(optimizer) -> int:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        optimizer.step()
    return sum(event.name == "aten::_fused_adamw_" for event in recorded.events())


@pytest.mark.parametrize("more", [{}, {"update_scale": 0.3}, {"maximize": True}], ids=str)
def test_together_equals_one_by_one(more, device):
    dtypes = (torch.float32, torch.float64, torch.bfloat16)  # the last by the reference
    together, alone = params(device, dtypes), params(device, dtypes)
    optimizer = adamw(together, **more)
    others = [adamw([p], **more) for p in alone]
    for step in range(4):
        set_grads(together, gradients(step))
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            if (i + step) % 5 == 0:  # not all of them have a gradient in every step
                p.grad = None
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        for other in others:
            other.step()
    assert all(map(same_bits, together, alone))
    for p, q, other in zip(together, alone, others, strict=True):
        a, b = optimizer.state[p], other.state[q]
        assert a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


def test_equals_torch(device):
    ours, theirs = params(device), params(device)
    optimizer = adamw(ours)
    other = torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(3):
        for tensors in (ours, theirs):
            set_grads(tensors, gradients(step))
        optimizer.step()
        other.step()
    assert all(map(same_bits, ours, theirs))


def test_one_call_for_all_that_agree(device):
    optimizer = adamw(params(device))
    optimizer.add_param_group({"params": params(device), "rule": "adamw"})  # the same options
    run(optimizer, 1, gradients())
    assert fused_calls(optimizer) == 1
    optimizer.add_param_group({"params": params(device), "rule": "adamw", "lr": 0.5})
    optimizer.add_param_group({"params": params(device, (torch.float64,)), "rule": "adamw"})
    run(optimizer, 1, gradients())
    assert fused_calls(optimizer) == 3
    for group in optimizer.param_groups:
        group["decay"] = "cautious"
    assert fused_calls(optimizer) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("update_scale", [0.0, 1e-30, 1e-3, 0.3, 2.0, 7.0, 1e10])
def test_update_scale(update_scale, dtype, device):
    """Scales the update and not the decay, through the fused kernel where that can say it."""
    start = torch.randn(8, 6, generator=gradients()).to(device, dtype)
    lr, decay = (0.02, 0.5) if update_scale < 1e9 else (0.02 / update_scale, 0.5)
    results = []
    # Every row is in use, so this support is everything; the fused kernel leaves it alone.
    for support in ("all", "gradient"):
        p = nn.Parameter(start.clone())
        optimizer = adamw(
            [p], lr=lr, weight_decay=decay, update_scale=update_scale, support=support
        )
        set_grads([p], gradients(2))
        fused = support == "all" and 1e-4 < update_scale < 1e4
        assert fused_calls(optimizer) == fused
        results.append(p.detach())
    # A dozen roundings of the update, a few of the value; eps is 1e-8 beside the gradient.
    length = lr * update_scale  # of Adam's first step, in every entry
    bound = roundoff(dtype) * (4 * start.abs() + 16 * length)
    assert ((results[0] - results[1]).abs() <= bound).all()
    moved = (results[0] - (1 - lr * decay) * start).abs()
    assert ((moved - length).abs() <= bound + 1e-6 * length).all()


def test_power_of_two_scale_is_exact(device):
    scaled, plain = params(device), params(device)
    run(adamw(scaled, lr=0.25, weight_decay=0.5, update_scale=0.5), 3, gradients())
    run(adamw(plain, lr=0.125, weight_decay=1.0), 3, gradients())
    assert all(map(same_bits, scaled, plain))


def test_step_is_where_the_parameter_is(device):
    optimizer = adamw(params(device))
    run(optimizer, 2, gradients())
    for p in params_of(optimizer):
        step = optimizer.state[p]["step"]
        assert step.device == p.device and step.dtype == torch.float32 and step.shape == ()
        assert step.item() == 2


FORMS = {
    "cpu": lambda step: step.cpu(),
    "float64": lambda step: step.double(),
    "one element": lambda step: step.reshape(1),
    "number": lambda step: step.item(),
}


@pytest.mark.parametrize("form", FORMS)
def test_step_of_any_checkpoint(form, device):
    tensors = params(device)
    optimizer = adamw(tensors)
    run(optimizer, 2, gradients())
    state_dict = copy.deepcopy(optimizer.state_dict())
    twins = [nn.Parameter(p.detach().clone()) for p in tensors]
    for state in state_dict["state"].values():
        state["step"] = FORMS[form](state["step"])
    given = copy.deepcopy(state_dict)
    other = adamw(twins)
    other.load_state_dict(state_dict)
    for q in twins:
        step = other.state[q]["step"]
        assert step.device == q.device and step.dtype == torch.float32 and step.shape == ()
    assert all(map(same_bits, run(optimizer, 2, gradients(3)), run(other, 2, gradients(3))))
    for a, b in zip(state_dict["state"].values(), given["state"].values(), strict=True):
        assert a["step"] == b["step"]  # the loaded dict is the caller's
    assert all(other.state[q]["step"].item() == 4 for q in twins)


def test_checkpoint_of_torch(device):
    """A fused AdamW's, and one whose step counts are on the CPU, in both directions."""
    for fused in (True, False):
        ours, theirs = params(device), params(device)
        options = {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.1}
        other = torch.optim.AdamW(theirs, fused=fused, **options)
        run(other, 2, gradients())
        for p, q in zip(ours, theirs, strict=True):
            p.data.copy_(q)
        optimizer = adamw(ours)
        state = copy.deepcopy(other.state_dict()["state"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        assert all(optimizer.state[p]["step"].item() == 2 for p in ours)
        back = torch.optim.AdamW(theirs, fused=True, **options)
        state = copy.deepcopy(optimizer.state_dict()["state"])
        back.load_state_dict({**back.state_dict(), "state": state})
        a, b = run(optimizer, 2, gradients(4)), run(back, 2, gradients(4))
        assert all(map(same_bits, a, b))


@pytest.mark.parametrize("cls", [erlangen.Equivariant, erlangen.Muon])
def test_whole_checkpoint_of_torch(cls, device):
    """Groups too: the options are the checkpoint's, those that AdamW does not know stay."""
    ours, theirs = params(device), params(device)
    options = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    other = torch.optim.AdamW(theirs, fused=True, **options)
    run(other, 2, gradients())
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q)
    optimizer = adamw(ours, cls, lr=0.5, update_scale=1.0)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    group = optimizer.param_groups[0]
    assert group["rule"] == "adamw" and group["update_scale"] == 1.0
    assert {name: group[name] for name in options} == options
    a, b = run(optimizer, 3, gradients(4)), run(other, 3, gradients(4))
    assert all(map(same_bits, a, b))


def test_checkpoint_of_torch_is_not_for_matrix_rules(device):
    matrix, rest = nn.Parameter(torch.randn(8, 6, device=device)), params(device)
    groups = [{"params": [matrix], "rule": "spectral"}, {"params": rest, "rule": "adamw"}]
    optimizer = erlangen.Equivariant(groups)
    other = torch.optim.AdamW([{"params": [matrix]}, {"params": rest}])
    run(other, 1, gradients())
    before = Picture(optimizer)
    raises(
        ValueError,
        ["param_groups[0]", "an Adam's", "'spectral'", "torch.optim.Muon's"],
        lambda: optimizer.load_state_dict(other.state_dict()),
    )
    Picture(optimizer).assert_same(before)
