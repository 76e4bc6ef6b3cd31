"""Learning rates: every scheduler of torch, tensors as rates, and a rate of zero."""

import copy
import warnings

import erlangen
import pytest
import torch
from state_helpers import (
    gradients,
    model_of,
    optimizer_of,
    params_of,
    run,
    same_bits,
    set_grads,
    values,
)
from torch import nn
from torch.optim import lr_scheduler, swa_utils


@pytest.mark.parametrize("rule", ["spectral", "row_norm", "adamw"])
def test_tensor_lr(rule, device):
    def build(lr):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(8, 6, device=device))]
        return erlangen.Equivariant([{"params": params, "rule": rule}], lr=lr)

    optimizer, other = build(torch.tensor(0.5)), build(0.5)
    assert all(map(same_bits, run(optimizer, 2, gradients()), run(other, 2, gradients())))
    optimizer.param_groups[0]["lr"].fill_(0.25)
    other.param_groups[0]["lr"] = 0.25
    assert all(map(same_bits, run(optimizer, 2, gradients(2)), run(other, 2, gradients(2))))


@pytest.mark.parametrize("decay", ["decoupled", "cautious"])
@pytest.mark.parametrize("rounding", [True, False])
def test_lr_zero_changes_no_parameter(decay, rounding, device):
    model = model_of(device, torch.bfloat16 if rounding else torch.float32)
    optimizer = erlangen.Equivariant(
        erlangen.param_groups(model, overrides={"*": {"center": False}}),
        lr=0.0,
        weight_decay=0.1,
        decay=decay,
        stochastic_rounding=rounding,
    )
    before = values(model.parameters())
    run(optimizer, 3, gradients())
    assert all(map(same_bits, before, model.parameters()))


def test_zero_gradient_on_fresh_state_without_decay(device):
    model = model_of(device)
    optimizer = optimizer_of(model, weight_decay=0.0)
    before = values(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "CyclicLR betas": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 8, cycle_momentum=False),
    "OneCycleLR betas": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.001, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_here():
    known = {name.split()[0] for name in SCHEDULERS} | {"LRScheduler"}
    assert set(lr_scheduler.__all__) <= known


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name):
    """Parameters move as if the learning rates had been set by hand, through a restart as well."""
    model, twin = model_of(), model_of()
    twin.load_state_dict(model.state_dict())
    optimizer, by_hand = optimizer_of(model), optimizer_of(twin)
    scheduler = SCHEDULERS[name](optimizer)
    rates = []
    for step in range(6):
        set_grads(params_of(optimizer), gradients(step))
        set_grads(params_of(by_hand), gradients(step))
        for ours, theirs in zip(by_hand.param_groups, optimizer.param_groups, strict=True):
            ours["lr"], ours["betas"] = theirs["lr"], theirs["betas"]
        optimizer.step()
        by_hand.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        if step == 2:
            saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
            optimizer = optimizer_of(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the scheduler is older than the optimizer
                scheduler = SCHEDULERS[name](optimizer)
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
    assert len(set(rates)) > 1
    assert all(map(same_bits, model.parameters(), twin.parameters()))


def test_scheduler_keeps_the_ratios_of_groups():
    model = model_of()
    optimizer = optimizer_of(model)
    scales = [group["update_scale"] for group in optimizer.param_groups]
    assert len(set(scales)) > 1
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, 8)
    run(optimizer, 1, gradients())
    scheduler.step()
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    assert [group["update_scale"] for group in optimizer.param_groups] == scales
