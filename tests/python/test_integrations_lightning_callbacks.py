"""Lightning's callbacks that look into an optimizer: fine-tuning, averaging, monitor, finder."""

import erlangen
import lightning
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture, params_of, same_bits, values
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import SWALR
from torch.utils.data import DataLoader

BATCHES, UNFREEZE, RATIO, GROWTH = 3, 1, 0.1, 1.5


class Module(lightning.LightningModule):
    def __init__(self, seed=0, learning_rate=0.02):
        super().__init__()
        torch.manual_seed(seed)
        self.learning_rate = learning_rate  # where the finder looks
        self.backbone = nn.Sequential(
            nn.Embedding(7, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        )
        self.head = nn.Linear(8, 3)
        self.losses = []

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self.head(self.backbone(batch)), batch % 3)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = erlangen.Equivariant(self, lr=self.learning_rate, weight_decay=0.1)
        return [optimizer], [StepLR(optimizer, 2, 0.7)]


def data():
    return DataLoader(torch.arange(7 * BATCHES) ** 2 % 7, 7)


def fit(folder, module, *callbacks, checkpoint=None, **more):
    chosen = dict(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    trainer = lightning.Trainer(**chosen | more)
    trainer.fit(module, data(), ckpt_path=checkpoint)
    return trainer, trainer.optimizers[0]


# ---- What thaws


def finetuning(**more):
    chosen = dict(
        unfreeze_backbone_at_epoch=UNFREEZE,
        lambda_func=lambda epoch: GROWTH,
        backbone_initial_ratio_lr=RATIO,
    )
    return BackboneFinetuning(**chosen | more)


def by_hand(epochs=5):
    """What BackboneFinetuning does, with the backbone's groups made by hand and all steered."""
    module = Module()
    module.backbone.requires_grad_(False)
    (optimizer,), (scheduler,) = module.configure_optimizers()
    rate = None
    for epoch in range(epochs):
        first = optimizer.param_groups[0]["lr"]
        if epoch == UNFREEZE:
            module.backbone.requires_grad_(True)
            rate = first * RATIO
            known = {id(p) for p in params_of(optimizer)}
            for group in erlangen.param_groups(module):
                new = [i for i, p in enumerate(group["params"]) if id(p) not in known]
                if new:
                    lists = {k: [group[k][i] for i in new] for k in ("params", "param_names")}
                    optimizer.add_param_group({**group, **lists, "lr": rate})
        elif epoch > UNFREEZE:
            rate = min(rate * GROWTH, first)
            for group in optimizer.param_groups[2:]:
                group["lr"] = rate
        for batch in data():
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
        scheduler.step()
    return module, optimizer


def test_backbone_finetuning(tmp_path):
    module = Module()
    trainer, optimizer = fit(tmp_path, module, finetuning())
    reference, expected = by_hand()
    assert len(expected.param_groups) > 4
    assert module.losses == reference.losses
    Picture(optimizer).assert_same_tensors(Picture(expected))
    assert [g["rule"] for g in optimizer.param_groups] == [g["rule"] for g in expected.param_groups]


class Thawed(lightning.Callback):
    """What Lightning leaves out when it resumes: the backbone stays frozen, whatever trains it."""

    def on_train_start(self, trainer, module):
        module.backbone.requires_grad_(True)


def test_backbone_finetuning_resumes(tmp_path):
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole, other = Module(), Module(seed=1)
    _, optimizer = fit(tmp_path, whole, finetuning(), saves)
    checkpoint = str(tmp_path / f"epoch={UNFREEZE + 1}.ckpt")
    _, resumed = fit(tmp_path, other, finetuning(), Thawed(), checkpoint=checkpoint)
    assert other.losses == whole.losses[(UNFREEZE + 2) * BATCHES :]
    Picture(resumed).assert_same_tensors(Picture(optimizer))
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in optimizer.param_groups]


class LayerByLayer(BaseFinetuning):
    """Thaws one layer an epoch, the last first, at a tenth of the lr, as its default is."""

    def freeze_before_training(self, module):
        self.freeze(module.backbone)

    def finetune_function(self, module, epoch, optimizer):
        if 1 <= epoch <= 4:
            self.unfreeze_and_add_param_group(module.backbone[-epoch], optimizer)


def test_layer_by_layer(tmp_path):
    module = Module()
    _, optimizer = fit(tmp_path, module, LayerByLayer())
    routed = {
        name: (group["role"], group["rule"])
        for group in erlangen.param_groups(Module())
        for name in group["param_names"]
    }
    found = {
        name: (group["role"], group["rule"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert found == routed
    assert set(optimizer.state) == set(module.parameters())
    assert module.losses[-1] < module.losses[0]


# ---- Monitor and finder


@pytest.mark.filterwarnings("ignore")
def test_learning_rate_monitor(tmp_path):
    """It takes down each group's rate, also of groups that come later.

    Those that follow the last one do so in the step, so that at an epoch's first batch their old
    rate is taken down.
    """
    monitor = LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)
    logger = CSVLogger(tmp_path)
    trainer, optimizer = fit(
        tmp_path, Module(), finetuning(), monitor, logger=logger, log_every_n_steps=1
    )
    assert len(monitor.lrs) == len(optimizer.param_groups)
    head, *_, last = monitor.lrs.values()
    thawed = list(monitor.lrs.values())[2:]
    assert (len(head), len(last)) == (5 * BATCHES, (5 - UNFREEZE) * BATCHES)
    assert len(set(last)) == 4
    for rates in thawed:
        assert [r for i, r in enumerate(rates) if i % BATCHES] == [
            r for i, r in enumerate(last) if i % BATCHES
        ]


@pytest.mark.filterwarnings("ignore")
def test_learning_rate_finder(tmp_path):
    """It trains, puts everything back, and sets the rate of all groups."""
    module = Module()
    finder = LearningRateFinder(num_training_steps=20, max_lr=0.3, early_stop_threshold=None)
    trainer, optimizer = fit(tmp_path, module, finder, max_epochs=8, enable_checkpointing=True)
    suggested = finder.optimal_lr.suggestion()
    assert suggested and module.learning_rate == suggested
    reference = Module(learning_rate=suggested)
    _, expected = fit(tmp_path, reference, max_epochs=8)
    assert module.losses[-8 * BATCHES :] == reference.losses
    Picture(optimizer).assert_same_tensors(Picture(expected))


# ---- Averaging


def test_stochastic_weight_averaging(tmp_path):
    start, rate = 2, 0.005
    module = Module()
    swa = StochasticWeightAveraging(rate, swa_epoch_start=start, annealing_epochs=2)
    _, optimizer = fit(tmp_path, module, swa)

    reference = Module()
    (expected,), (scheduler,) = reference.configure_optimizers()
    average, count = None, 0
    for epoch in range(5):
        if epoch == start - 1:
            for group in expected.param_groups:
                group["initial_lr"] = rate
            scheduler = SWALR(expected, rate, anneal_epochs=2, last_epoch=5)
        if epoch >= start - 1:
            now = values(reference.parameters())
            if average is None:
                average = now
            else:
                average = [a + (b - a) / (count + 1) for a, b in zip(average, now, strict=True)]
            count += 1
        for batch in data():
            expected.zero_grad()
            reference.training_step(batch, 0).backward()
            expected.step()
        scheduler.step()
    assert module.losses == reference.losses
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in expected.param_groups]
    assert all(map(same_bits, module.parameters(), average))
