"""Averages of weights: torch.optim.swa_utils, and wrappers that keep theirs in the state."""

import copy

import erlangen
import pytest
import torch
from rule_helpers import one_thread  # noqa: F401
from schedulefree import ScheduleFreeWrapper
from state_helpers import Picture, loss_of, model_of, same_bits, values
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

OPTIONS = {"lr": 0.02, "weight_decay": 0.1}


def model_from(seed=0):
    torch.manual_seed(seed)
    return model_of()


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


# ---- torch.optim.swa_utils


def test_swa():
    """The average is of what the optimizer makes, its rate SWALR's; both can be taken up again."""
    start, rate = 2, 0.005

    def parts(seed=0):
        model = model_from(seed)
        optimizer = erlangen.Equivariant(model, **OPTIONS)
        return model, optimizer, AveragedModel(model), SWALR(optimizer, rate, anneal_epochs=2)

    def epochs(model, optimizer, average, scheduler, begin, end):
        seen = []
        for epoch in range(begin, end):
            train(model, optimizer)
            if epoch >= start:
                average.update_parameters(model)
                scheduler.step()
                seen.append(values(model.parameters()))
        return seen

    whole = parts()
    seen = epochs(*whole, 0, 4)
    saved = copy.deepcopy([part.state_dict() for part in whole])
    seen += epochs(*whole, 4, 6)
    for i, p in enumerate(whole[2].module.parameters()):
        torch.testing.assert_close(p, torch.stack([s[i] for s in seen]).mean(0))
    assert {g["lr"] for g in whole[1].param_groups} == {rate}

    resumed = parts(seed=1)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    epochs(*resumed, 4, 6)
    Picture(resumed[1]).assert_same_tensors(Picture(whole[1]))
    assert all(map(same_bits, resumed[2].parameters(), whole[2].parameters()))
    update_bn([torch.arange(7)], whole[2])


def test_ema():
    model, decay = model_from(), 0.5
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    expected = None
    for _ in range(4):
        train(model, optimizer)
        average.update_parameters(model)
        now = values(model.parameters())
        old = expected or now
        expected = [decay * a + (1 - decay) * b for a, b in zip(old, now, strict=True)]
    for p, q in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(p, q)


# ---- ScheduleFree keeps the point that steps are taken from in the state, as "z"


def schedule_free(model):
    return ScheduleFreeWrapper(erlangen.Equivariant(model, **OPTIONS), momentum=0.9)


def test_schedule_free_learns():
    model = model_from()
    optimizer = schedule_free(model)
    before = loss_of(model).item()
    optimizer.train()
    train(model, optimizer, 20)
    optimizer.eval()
    assert loss_of(model).item() < 0.8 * before


@pytest.mark.parametrize("steps", [0, 3])
def test_schedule_free_resumes(steps):
    model, other = model_from(), model_from(seed=1)
    optimizer = schedule_free(model)
    optimizer.train()
    train(model, optimizer, steps)
    saved = copy.deepcopy([part.state_dict() for part in (model, optimizer)])
    train(model, optimizer, 3)

    resumed = schedule_free(other)
    resumed.train()
    for part, state in zip((other, resumed), saved, strict=True):
        part.load_state_dict(state)
    train(other, resumed, 3)
    Picture(resumed.base).assert_same_tensors(Picture(optimizer.base))
    assert "z" in optimizer.state[next(model.parameters())]
