"""torch.compile: a compiled model, a compiled training step with optimizer.step() inside, closures.

The backend "aot_eager" compiles forward and backward and computes with torch's own kernels, so that
bits can be compared.
"""

import copy
import warnings

import erlangen
import pytest
import torch
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture, loss_of, model_of, optimizer_of, same_bits
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import ExponentialLR

STEPS = 12  # more than the compiler would compile anew before it gave up (8)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def start():
    torch.manual_seed(0)
    model = model_of()
    optimizer = optimizer_of(model)
    return model, optimizer, ExponentialLR(optimizer, 0.9)


def whole_step(model, optimizer):
    """Everything in one function, the optimizer included."""

    def step():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def run(model, optimizer, scheduler, step, steps=STEPS):
    losses = []
    for _ in range(steps):
        losses.append(step().item())
        scheduler.step()
    return losses


def expected():
    model, optimizer, scheduler = start()
    return run(model, optimizer, scheduler, whole_step(model, optimizer)), Picture(optimizer)


def compiled_model(model, optimizer, backend):
    return whole_step(torch.compile(model, backend=backend), optimizer)


def compiled_step(model, optimizer, backend):
    return torch.compile(whole_step(model, optimizer), backend=backend)


def compiled_closure(model, optimizer, backend):
    forward = torch.compile(lambda: loss_of(model), backend=backend)

    def closure():
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        return loss

    return lambda: optimizer.step(closure).detach()


@pytest.mark.parametrize("how", [compiled_model, compiled_step, compiled_closure])
def test_same_bits_as_without(how):
    losses, picture = expected()
    backend = CompileCounterWithBackend("aot_eager")
    model, optimizer, scheduler = start()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*erlangen.*")  # that it does not know our code
        assert run(model, optimizer, scheduler, how(model, optimizer, backend)) == losses
    Picture(optimizer).assert_same_tensors(picture)
    # The forward pass and, of the whole step, what follows the optimizer; once for all rates.
    assert backend.frame_count == 1 + (how is compiled_step)


def test_resumes():
    """Saved after half of the steps and compiled again, in what would be another process."""
    losses, picture = expected()
    first = start()
    half = run(*first, compiled_step(*first[:2], "aot_eager"), steps=STEPS // 2)
    saved = copy.deepcopy([part.state_dict() for part in first])
    torch._dynamo.reset()
    second = start()
    for part, state_dict in zip(second, saved, strict=True):
        part.load_state_dict(state_dict)
    rest = run(*second, compiled_step(*second[:2], "aot_eager"), steps=STEPS - STEPS // 2)
    assert half + rest == losses
    Picture(second[1]).assert_same_tensors(picture)


def test_groups_of_a_compiled_model():
    model = model_of()
    compiled = torch.compile(model, backend="aot_eager")
    groups, plain = erlangen.param_groups(compiled), erlangen.param_groups(model)
    for one, other in zip(groups, plain, strict=True):
        assert (one["role"], one["rule"]) == (other["role"], other["rule"])
        assert all(p is q for p, q in zip(one["params"], other["params"], strict=True))


def test_step_alone():
    """Recipes of torch compile optimizer.step itself."""
    model, optimizer, _ = start()
    twin, other, _ = start()
    compiled = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for _ in range(3):
        for m, o, step in ((model, optimizer, compiled), (twin, other, other.step)):
            o.zero_grad()
            loss_of(m).backward()
            step()
    assert all(map(same_bits, model.parameters(), twin.parameters()))
