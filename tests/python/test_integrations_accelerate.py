"""Accelerate: prepare, accumulation, clipping, schedulers, mixed precision, checkpoints."""

import math

import erlangen
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from integration_helpers import Text, language_model
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture, params_of
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

ACCUMULATED = 2


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate's settings are the process's; the next test has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Run:
    """A model in training under Accelerate."""

    def __init__(self, seed=0, mixed_precision="no", scaler=None, frozen=()):
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=ACCUMULATED, mixed_precision=mixed_precision
        )
        self.accelerator.scaler = scaler
        model, optimizer, scheduler = parts(seed, frozen)
        prepared = self.accelerator.prepare(model, optimizer, DataLoader(Text(), 2), scheduler)
        self.model, self.optimizer, self.data, self.scheduler = prepared
        self.inner = optimizer
        self.losses = []

    def train(self, begin, end, spoil=()):
        """The batches from begin to end; the gradients of those in spoil are infinite."""
        for i, batch in enumerate(self.data):
            if not begin <= i < end:
                continue
            with self.accelerator.accumulate(self.model):
                loss = self.model(**batch).loss
                self.accelerator.backward(loss)
                if i in spoil:
                    params_of(self.inner)[0].grad[0, 0] = math.inf
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.item())


def parts(seed=0, frozen=()):
    model = language_model(seed)
    for name in frozen:
        getattr(model.model, name).requires_grad_(False)
    optimizer = erlangen.Equivariant(model, lr=0.01, weight_decay=0.1)
    return model, optimizer, StepLR(optimizer, 2, 0.5)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_trains_and_resumes(mixed_precision, tmp_path):
    whole = Run(mixed_precision=mixed_precision)
    whole.train(0, 4)
    whole.accelerator.save_state(tmp_path)
    whole.train(4, 8)
    assert whole.losses[-1] < whole.losses[0]

    resumed = Run(seed=1, mixed_precision=mixed_precision)
    resumed.accelerator.load_state(tmp_path)
    resumed.train(4, 8)
    assert resumed.losses == whole.losses[4:]
    Picture(resumed.inner).assert_same_tensors(Picture(whole.inner))
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_equals_a_plain_loop():
    run = Run()
    run.train(0, 8)
    model, optimizer, scheduler = parts()
    losses = []
    for i, batch in enumerate(DataLoader(Text(), 2)):
        if i == 8:
            break
        loss = model(**batch).loss
        (loss / ACCUMULATED).backward()
        losses.append(loss.item())
        if i % ACCUMULATED == ACCUMULATED - 1:
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert losses == run.losses
    assert scheduler.get_last_lr() == run.scheduler.get_last_lr()
    Picture(run.inner).assert_same_tensors(Picture(optimizer))


def test_overflow_makes_the_scheduler_wait():
    run = Run(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8))
    run.train(0, 2)
    assert not run.optimizer.step_was_skipped
    before, rate = Picture(run.inner), run.scheduler.get_last_lr()
    count = run.scheduler.scheduler.last_epoch
    run.train(2, 4, spoil={3})
    assert run.optimizer.step_was_skipped
    Picture(run.inner).assert_same(before)
    assert run.scheduler.get_last_lr() == rate and run.scheduler.scheduler.last_epoch == count
    run.train(4, 6)
    assert not run.optimizer.step_was_skipped
    assert run.scheduler.scheduler.last_epoch == count + 1


def test_what_thaws_resumes(tmp_path):
    """Groups are added through the wrapper; a resumed run adds them before it loads."""

    def run_with_frozen_table(seed):
        run = Run(seed, frozen=["embed_tokens"])
        return run, run.model.model.embed_tokens.weight

    def thaw(run, table):
        table.requires_grad_(True)
        run.optimizer.add_param_group({"params": [table], "lr": 0.02})

    whole, table = run_with_frozen_table(seed=0)
    whole.train(0, 4)
    assert table not in whole.inner.state
    thaw(whole, table)
    whole.train(4, 8)
    whole.accelerator.save_state(tmp_path)
    whole.train(8, 12)
    assert whole.inner.param_groups[-1]["role"] == "embedding" and table in whole.inner.state

    resumed, table = run_with_frozen_table(seed=1)
    thaw(resumed, table)
    resumed.accelerator.load_state(tmp_path)
    resumed.train(8, 12)
    assert resumed.losses == whole.losses[8:]
    Picture(resumed.inner).assert_same_tensors(Picture(whole.inner))
