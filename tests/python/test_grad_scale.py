"""Scaled losses by the attributes that torch.amp.GradScaler sets: what step() then does itself."""

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
    raises,
    run,
    same_bits,
    set_grads,
)


class ScalesItself(erlangen.Equivariant):
    """GradScaler leaves everything to step(), as for capturable groups on CUDA."""

    _step_supports_amp_scaling = True


def scaler_of(device):
    return torch.amp.GradScaler(device.type, init_scale=2.0**10)


def twins(device):
    """The same model twice: one that scales itself, one for GradScaler's own way."""
    models = [model_of(device), model_of(device)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"lr": 0.02, "weight_decay": 0.1}
    return models, [ScalesItself(models[0], **options), optimizer_of(models[1])]


def backward(model, optimizer, scaler):
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()


def scaled_grads(optimizer, scaler, seed):
    """The same gradients for all: an optimizer that rounds otherwise gets no others from it."""
    scaler.scale(torch.zeros((), device=params_of(optimizer)[0].device))  # creates the scale
    set_grads(params_of(optimizer), gradients(seed))
    for p in params_of(optimizer):
        p.grad.mul_(scaler.get_scale())


def test_who_unscales():
    plain, capturable = optimizer_of(model_of()), optimizer_of(model_of(), capturable=True)
    assert not plain._step_supports_amp_scaling
    assert capturable._step_supports_amp_scaling


def test_equals_the_scalers_own_way(device):
    """Up to the row-norm step, which a kernel takes in one of the two: one rounding each."""
    models, optimizers = twins(device)
    scalers = [scaler_of(device) for _ in models]
    for step in range(4):
        for optimizer, scaler in zip(optimizers, scalers, strict=True):
            scaled_grads(optimizer, scaler, step)
            if step == 2:
                params_of(optimizer)[0].grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**9
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("unscale", [True, False])
def test_overflow_leaves_every_bit(value, unscale, device):
    (model, _), (optimizer, _) = twins(device)
    scaler = scaler_of(device)
    run(optimizer, 2, gradients())
    before = Picture(optimizer)
    backward(model, optimizer, scaler)
    model[1].weight.grad[0, 0] = value
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    Picture(optimizer).assert_same(before)
    assert scaler.get_scale() == 2.0**9
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")
    backward(model, optimizer, scaler)
    scaler.step(optimizer)
    assert all(p.isfinite().all() for p in model.parameters())
    assert not all(map(same_bits, before.params, params_of(optimizer)))


def test_overflow_in_the_first_step_on_the_cpu():
    (model, _), (optimizer, _) = twins("cpu")
    before = Picture(optimizer)
    set_grads(params_of(optimizer), gradients())
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    Picture(optimizer).assert_same(before)  # no state has come into being


def test_unscaled_gradients_are_not_scaled_again(device):
    models, optimizers = twins(device)
    scalers = [scaler_of(device) for _ in models]
    for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
        scaled_grads(optimizer, scaler, 1)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_no_number(name):
    optimizer = optimizer_of(model_of())
    run(optimizer, 1, gradients())
    before = Picture(optimizer)
    set_grads(params_of(optimizer), gradients(3))
    setattr(optimizer, name, torch.ones(2))
    raises(ValueError, [name, "[2]", "one real number"], optimizer.step)
    Picture(optimizer).assert_same(before)


@pytest.mark.parametrize("optimizer_class", [erlangen.Equivariant, ScalesItself])
def test_resumes_with_the_scaler(optimizer_class, device):
    """Taken up again after an overflow, model, optimizer and scaler go on with equal bits."""

    def start():
        model = model_of(device)
        return model, optimizer_class(model, lr=0.02, weight_decay=0.1), scaler_of(device)

    def train(run, seeds):
        _, optimizer, scaler = run
        for seed in seeds:
            scaled_grads(optimizer, scaler, seed)
            if seed == 2:
                params_of(optimizer)[0].grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()

    first, second = start(), start()
    train(first, range(4))
    for part, other in zip(first, second, strict=True):
        other.load_state_dict(copy.deepcopy(part.state_dict()))
    for each in (first, second):
        train(each, range(4, 7))
    Picture(first[1]).assert_same_tensors(Picture(second[1]))
    assert first[2].get_scale() == second[2].get_scale() == 2.0**9
