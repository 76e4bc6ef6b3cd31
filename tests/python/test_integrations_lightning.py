"""Lightning's automatic optimization: accumulation, clipping, schedulers, checkpoint and resume."""

import itertools

import erlangen
import lightning
import pytest
import torch
from integration_helpers import Text, language_model
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

CLIP = 0.5


class Module(lightning.LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        self.model = language_model(seed)
        self.losses = []

    def training_step(self, batch, _):
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = erlangen.Equivariant(self, lr=0.01, weight_decay=0.1)
        scheduler = StepLR(optimizer, 2, 0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def trainer_of(folder, **more) -> lightning.Trainer:
    chosen = dict(
        max_steps=6,
        accumulate_grad_batches=2,
        gradient_clip_val=CLIP,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # An epoch is three steps. Within one, a plain DataLoader could not be taken up again.
        limit_train_batches=6,
        callbacks=[ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=3)],
    )
    return lightning.Trainer(**chosen | more)


def fit(folder, seed=0, checkpoint=None, **more):
    module, trainer = Module(seed), trainer_of(folder, **more)
    trainer.fit(module, DataLoader(Text(), 2), ckpt_path=checkpoint)
    return module, trainer.optimizers[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_trains_and_resumes(precision, tmp_path):
    module, optimizer = fit(tmp_path / "whole", precision=precision)
    assert len(module.losses) == 12
    assert module.losses[-1] < module.losses[0]

    checkpoint = tmp_path / "whole" / "step=3.ckpt"
    other, resumed = fit(tmp_path / "resumed", 1, str(checkpoint), precision=precision)
    assert other.losses == module.losses[6:]
    Picture(resumed).assert_same_tensors(Picture(optimizer))
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in optimizer.param_groups]


def plain_loop(steps=6):
    module = Module()
    chosen = module.configure_optimizers()
    optimizer, scheduler = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    batches = itertools.cycle(itertools.islice(DataLoader(Text(), 2), 6))
    norms = []
    for _ in range(steps):
        for _ in range(2):
            (module.training_step(next(batches), 0) / 2).backward()
        norms.append(clip_grad_norm_(module.parameters(), CLIP).item())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert max(norms) > CLIP  # something was clipped
    return module, optimizer


def test_equals_a_plain_loop(tmp_path):
    module, optimizer = fit(tmp_path)
    by_hand, reference = plain_loop()
    assert module.losses == by_hand.losses
    Picture(optimizer).assert_same_tensors(Picture(reference))


def test_clips_what_a_scaler_has_unscaled(tmp_path):
    """Lightning refuses to clip for an optimizer that unscales in its own step."""

    class Scaled(MixedPrecision):
        def forward_context(self):  # float32, so that only scaling differs from the plain loop
            return torch.autocast("cpu", enabled=False)

    # A power of two scales and unscales without rounding.
    plugin = Scaled("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    module, optimizer = fit(tmp_path, plugins=[plugin])
    by_hand, reference = plain_loop()
    assert module.losses == by_hand.losses
    Picture(optimizer).assert_same_tensors(Picture(reference))
