"""capturable=True: what it takes and what it refuses. Steps in CUDA graphs are in
test_cuda_graphs.py."""

import warnings

import erlangen
import pytest
import torch
from erlangen import _C
from state_helpers import (
    Picture,
    gradients,
    model_of,
    optimizer_of,
    params_of,
    raises,
    run,
    same_bits,
    set_grads,
)
from torch import nn


def test_parameters_on_the_cpu():
    """As torch's capturable optimizers: at the step, for a model may move before that."""
    optimizer = optimizer_of(model_of(), capturable=True)
    set_grads(params_of(optimizer), gradients())
    before = Picture(optimizer)
    raises(ValueError, ["cpu", "capturable=True", "CUDA parameters"], optimizer.step)
    Picture(optimizer).assert_same(before)
    for group in optimizer.param_groups:
        group["capturable"] = False
    optimizer.step()
    assert not all(map(same_bits, before.params, params_of(optimizer)))


@pytest.mark.parametrize("rule", ["spectral", "hybrid", "left_spectral"])
def test_decompositions_are_refused(rule):
    options = {"rule": rule, "ns_method": "exact"}
    params = [nn.Parameter(torch.randn(4, 4))]
    words = ["capturable", "exact", "ns_method"]
    raises(
        ValueError,
        words,
        lambda: erlangen.Equivariant([{"params": params, **options}], capturable=True),
    )
    optimizer = erlangen.Equivariant([{"params": params, **options}])
    set_grads(params, gradients())
    optimizer.param_groups[0]["capturable"] = True  # later is checked too
    raises(ValueError, words, optimizer.step)
    erlangen.Equivariant([{"params": params, **options, "rule": "row_norm"}], capturable=True)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_schedulers_keep_a_tensor(shape, device):
    """They fill it in place, which a captured graph sees."""
    models = [model_of(device), model_of(device)]
    models[1].load_state_dict(models[0].state_dict())
    rate = torch.full(shape, 0.5, device=device)
    optimizers = [optimizer_of(models[0], lr=rate), optimizer_of(models[1], lr=0.5)]
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in optimizers]
    tensors = [group["lr"] for group in optimizers[0].param_groups]
    for step in range(3):
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            run(optimizer, 1, gradients(step))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                schedule.step()
    groups = optimizers[0].param_groups
    assert all(group["lr"] is tensor for group, tensor in zip(groups, tensors, strict=True))
    assert all(group["lr"].item() == 0.0625 for group in groups)
    for p, q in zip(*map(params_of, optimizers), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_scale_and_overflow_on_the_host_are_refused_in_capture(name):
    """Their value would be every replay's. What is on a device is not read: here the next thing
    that is wrong is said."""
    optimizer = optimizer_of(model_of())
    set_grads(params_of(optimizer), gradients())
    before = Picture(optimizer)

    def capture(device):
        inputs = {"grad_scale": None, "found_inf": None, name: torch.ones((), device=device)}
        groups, state = optimizer.param_groups, optimizer.state
        _C.step(optimizer._plan, groups, state, **inputs, capturing=True)

    words = ["captured", f"{name} is a tensor on the CPU", "allowed: a tensor on the device"]
    raises(ValueError, words, lambda: capture("cpu"))
    raises(ValueError, ["capturable=False"], lambda: capture("meta"))
    Picture(optimizer).assert_same(before)
