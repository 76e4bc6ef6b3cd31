"""Erlangen's optimizers do what users of torch.optim expect of any optimizer."""

import copy
import math

import erlangen
import pytest
import torch
from state_helpers import (
    Picture,
    gradients,
    loss_of,
    model_of,
    optimizer_of,
    params_of,
    run,
    same_bits,
    set_grads,
    values,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._python_dispatch import TorchDispatchMode


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


# ---- The loop


def test_training_lowers_the_loss(device):
    model = model_of(device)
    optimizer = erlangen.Equivariant(model, lr=0.02)
    before = loss_of(model).item()
    train(model, optimizer, 20)
    assert loss_of(model).item() < 0.7 * before


def test_an_error_of_a_dispatch_mode_stays_what_it_is():
    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "aten":
                raise ZeroDivisionError(str(func))
            return func(*args, **(kwargs or {}))

    param = nn.Parameter(torch.ones(4, 4))
    optimizer = erlangen.Muon([param])
    set_grads([param], gradients())
    with Refusing(), pytest.raises(ZeroDivisionError, match="aten"):
        optimizer.step()
    assert not optimizer.state


def test_closure():
    model, twin = model_of(), model_of()
    twin.load_state_dict(model.state_dict())
    optimizer = optimizer_of(model)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    expected = loss_of(model)
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert torch.equal(loss, expected)
    train(twin, optimizer_of(twin))
    assert all(map(same_bits, model.parameters(), twin.parameters()))
    assert optimizer.step() is None


def test_failing_closure_changes_nothing():
    model = model_of()
    optimizer = optimizer_of(model)
    train(model, optimizer)
    before = Picture(optimizer)

    def closure():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        optimizer.step(closure)
    Picture(optimizer).assert_same(before)


def test_step_hooks():
    model = model_of()
    optimizer = optimizer_of(model)
    calls = []

    def pre(opt, args, kwargs):
        calls.append(("pre", params_of(opt)[0].detach().clone()))

    def post(opt, args, kwargs):
        calls.append(("post", params_of(opt)[0].detach().clone()))

    handles = [
        optimizer.register_step_pre_hook(pre),
        optimizer.register_step_post_hook(post),
    ]
    train(model, optimizer)
    assert [name for name, _ in calls] == ["pre", "post"]
    assert not torch.equal(calls[0][1], calls[1][1])
    for handle in handles:
        handle.remove()
    train(model, optimizer)
    assert len(calls) == 2


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    model = model_of()
    optimizer = optimizer_of(model)
    train(model, optimizer)
    optimizer.zero_grad(set_to_none=set_to_none)
    for p in model.parameters():
        assert p.grad is None if set_to_none else not p.grad.any()
    before = Picture(optimizer)
    if set_to_none:
        optimizer.step()  # nothing has a gradient
        Picture(optimizer).assert_same(before)


def test_accumulated_gradients():
    model, twin = model_of(), model_of()
    twin.load_state_dict(model.state_dict())
    optimizer, other = optimizer_of(model), optimizer_of(twin)
    for _ in range(2):
        (loss_of(model) / 2).backward()
    loss_of(twin).backward()
    optimizer.step()
    other.step()
    assert all(map(same_bits, model.parameters(), twin.parameters()))


def test_add_param_group_halfway(device):
    first = [nn.Parameter(torch.randn(8, 6, device=device)) for _ in range(2)]
    later = [nn.Parameter(torch.randn(8, 6, device=device))]
    optimizer = erlangen.Equivariant([{"params": first, "rule": "spectral"}], lr=0.02)
    alone = [nn.Parameter(p.detach().clone()) for p in first]
    reference = erlangen.Equivariant([{"params": alone, "rule": "spectral"}], lr=0.02)
    assert all(map(same_bits, run(optimizer, 2, gradients()), run(reference, 2, gradients())))

    optimizer.add_param_group({"params": later, "rule": "row_norm", "lr": 0.1})
    assert optimizer.param_groups[1]["momentum"] == 0.95
    new = [nn.Parameter(p.detach().clone()) for p in later]
    fresh = erlangen.Equivariant([{"params": new, "rule": "row_norm"}], lr=0.1)
    for step in range(3):
        set_grads(first + later, gradients(step))
        for p, q in zip(first + later, alone + new, strict=True):
            q.grad = p.grad.clone()
        for opt in (optimizer, reference, fresh):
            opt.step()
    # A group more changes nothing for the others.
    assert all(map(same_bits, first + later, alone + new))
    other = erlangen.Equivariant(
        [
            {"params": [nn.Parameter(p.detach().clone()) for p in first], "rule": "spectral"},
            {"params": [nn.Parameter(p.detach().clone()) for p in later], "rule": "row_norm"},
        ]
    )
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(map(same_bits, run(optimizer, 2, gradients(8)), run(other, 2, gradients(8))))


@pytest.mark.parametrize("named", [True, False])
def test_named_parameters(named):
    model = nn.Linear(4, 4, bias=False)
    params = list(model.named_parameters()) if named else list(model.parameters())
    optimizer = erlangen.RowNorm(params)
    assert optimizer.param_groups[0].get("param_names") == (["weight"] if named else None)
    train_once = copy.deepcopy(optimizer)
    run(train_once, 1, gradients())
    assert ("weight" in optimizer.explain()) == named


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_clip_grad_norm(limit, device):
    """Clipped gradients are gradients scaled by hand; PolarGrad's update scales with them."""
    grads = [torch.randn(8, 6, dtype=torch.float64, device=device) for _ in range(2)]
    norm = torch.cat(grads).norm()
    coefficient = min(1.0, limit / (float(norm) + 1e-6))  # torch's

    def moved(scale):
        params = [nn.Parameter(torch.zeros_like(g)) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = g * (scale or 1.0)
        if scale is None:
            nn.utils.clip_grad_norm_(params, limit)
        erlangen.PolarGrad(params, lr=0.1).step()
        return torch.cat(params).detach()

    clipped = moved(None)
    assert clipped.any()
    torch.testing.assert_close(clipped, moved(coefficient), rtol=1e-11, atol=0)
    torch.testing.assert_close(clipped, coefficient * moved(1.0), rtol=1e-11, atol=0)


# ---- Gradient scaling


def test_grad_scaler(device):
    model, twin = model_of(device), model_of(device)
    twin.load_state_dict(model.state_dict())
    optimizer, other = optimizer_of(model), optimizer_of(twin)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        scaler.step(optimizer)
        scaler.update()
    train(twin, other, 3)
    # A power of two scales and unscales without rounding.
    assert all(map(same_bits, model.parameters(), twin.parameters()))


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("unscale", [True, False])
def test_overflow_leaves_every_bit(value, first, unscale, device):
    model = model_of(device)
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    if not first:
        train(model, optimizer, 2)
    before = Picture(optimizer)
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    model[1].weight.grad[0, 0] = value
    if unscale:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model[3].parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    Picture(optimizer).assert_same(before)
    assert scaler.get_scale() == 2.0**9
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    scaler.step(optimizer)
    assert all(p.isfinite().all() for p in model.parameters())


# ---- Parameters that move


def test_parameters_swapped_before_the_first_step():
    """As Accelerate and FSDP2 do: new tensors are put into the groups after the constructor."""
    model, twin = model_of(), model_of()
    twin.load_state_dict(model.state_dict())
    optimizer, other = optimizer_of(model), optimizer_of(twin)
    swap = {p: nn.Parameter(p.detach().clone()) for p in params_of(optimizer)}
    for group in optimizer.param_groups:
        group["params"] = [swap[p] for p in group["params"]]
    assert all(map(same_bits, run(optimizer, 3, gradients()), run(other, 3, gradients())))


def test_data_replaced_between_steps(device):
    """As model.to() and checkpoint loading do: p.data is another tensor of the same shape."""
    model, twin = model_of(device), model_of(device)
    twin.load_state_dict(model.state_dict())
    optimizer, other = optimizer_of(model), optimizer_of(twin)
    run(optimizer, 2, gradients())
    run(other, 2, gradients())
    for p in model.parameters():
        p.data = p.data.clone()
    assert all(map(same_bits, run(optimizer, 2, gradients(3)), run(other, 2, gradients(3))))


@pytest.mark.parametrize("rule", ["spectral", "row_norm", "hybrid", "adamw"])
def test_parameters_of_any_strides(rule, device):
    plain = nn.Parameter(torch.randn(8, 6, device=device))
    strided = nn.Parameter(plain.detach().t().contiguous().t())
    optimizers = [erlangen.Equivariant([{"params": [p], "rule": rule}]) for p in (plain, strided)]
    for _ in range(3):
        plain.grad = torch.randn(8, 6, device=device)
        strided.grad = torch.empty_like(strided).copy_(plain.grad)
        assert strided.stride() == strided.grad.stride() == (1, 8)
        for optimizer in optimizers:
            optimizer.step()
        # And afterwards with a gradient of the usual strides.
        plain.grad = torch.randn(8, 6, device=device)
        strided.grad = plain.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(plain, strided, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["transposed", "expanded", "sliced", "lazily negated"])
@pytest.mark.parametrize("rule", ["spectral", "row_norm", "column_norm", "hybrid", "adamw"])
def test_gradients_of_any_kind(rule, kind, device):
    params = [nn.Parameter(torch.randn(8, 6, device=device)) for _ in range(2)]
    params[1].data.copy_(params[0].data)
    optimizers = [erlangen.Equivariant([{"params": [p], "rule": rule}]) for p in params]
    for _ in range(3):
        grad = {
            "transposed": torch.randn(6, 8, device=device).t(),
            "expanded": torch.randn(8, 1, device=device).expand(8, 6),
            "sliced": torch.randn(16, 12, device=device)[::2, ::2],
            "lazily negated": torch._neg_view(torch.randn(8, 6, device=device)),
        }[kind]
        params[0].grad, params[1].grad = grad, grad.resolve_neg().contiguous()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-6, atol=1e-6)


def test_gradients_come_and_go(device):
    """Which parameters are in a step changes nothing for those that are."""
    params = [nn.Parameter(torch.randn(8, 6, device=device)) for _ in range(3)]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    together = erlangen.Equivariant([{"params": params, "rule": "spectral"}])
    alone = [erlangen.Equivariant([{"params": [p], "rule": "spectral"}]) for p in twins]
    for step in range(7):
        set_grads(params, gradients(step))
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            if step >> i & 1:
                p.grad = None
            q.grad = None if p.grad is None else p.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    assert all(map(same_bits, params, twins))


def test_frozen_and_thawed():
    model = model_of()
    model[1].weight.requires_grad_(False)
    optimizer = erlangen.Equivariant(model)
    assert not any(p is model[1].weight for p in params_of(optimizer))
    before = model[1].weight.detach().clone()
    train(model, optimizer, 2)
    assert torch.equal(model[1].weight, before)


# ---- torch.distributed.checkpoint, without processes


def test_checkpoint_state_dict():
    model = model_of()
    optimizer = optimizer_of(model)
    run(optimizer, 2, gradients())
    before = Picture(optimizer)
    state_dict = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    Picture(optimizer).assert_same(before)

    twin = model_of()
    twin.load_state_dict(model.state_dict())
    other = optimizer_of(twin)
    set_optimizer_state_dict(twin, other, state_dict)
    Picture(other).assert_same_tensors(before)
    assert all(map(same_bits, run(optimizer, 2, gradients(4)), run(other, 2, gradients(4))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoint_probe_of_a_fresh_optimizer(dtype):
    """It makes a step with lr = 0 and zero gradients to create state: no parameter may move."""
    model = model_of(dtype=dtype)
    optimizer = optimizer_of(model, stochastic_rounding=dtype == torch.bfloat16)
    before = values(model.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    state_dict = get_optimizer_state_dict(model, optimizer)
    assert all(map(same_bits, before, model.parameters()))
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert {name.split(".")[0] for name in state_dict["state"]} == {"0", "1", "2", "3"}
