"""transformers' Trainer: both ways to give it an optimizer, and runs resumed from a checkpoint."""

import erlangen
import pytest
import torch
from erlangen.integrations import TrainerFactory
from integration_helpers import Text, language_model
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture, raises, same_bits
from torch.optim.lr_scheduler import StepLR
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

OPTIONS = {"lr": 0.01, "weight_decay": 0.1}


def arguments(folder, **more) -> TrainingArguments:
    chosen = dict(
        output_dir=str(folder),
        max_steps=6,
        save_steps=3,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        learning_rate=OPTIONS["lr"],
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    return TrainingArguments(**chosen | more)


def by_optimizers(model):
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    return {"optimizers": (optimizer, StepLR(optimizer, 2, 0.5))}


def by_optimizer_alone(model):
    return {"optimizers": (erlangen.Equivariant(model, **OPTIONS), None)}


def by_factory(model):
    return {"optimizer_cls_and_kwargs": (TrainerFactory, OPTIONS)}


def trainer_of(way, folder, seed=0, **more) -> Trainer:
    model = language_model(seed)
    return Trainer(model, arguments(folder, **more), train_dataset=Text(), **way(model))


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def picture(trainer) -> Picture:
    return Picture(getattr(trainer.optimizer, "optimizer", trainer.optimizer))


@pytest.mark.parametrize("way", [by_optimizers, by_optimizer_alone, by_factory])
@pytest.mark.parametrize("bf16", [False, True])
def test_trains_and_resumes(way, bf16, tmp_path):
    whole = trainer_of(way, tmp_path / "whole", bf16=bf16)
    whole.train()
    assert len(losses(whole)) == 6
    assert losses(whole)[-1] < losses(whole)[0]

    resumed = trainer_of(way, tmp_path / "resumed", seed=1, bf16=bf16)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert losses(resumed) == losses(whole)
    picture(resumed).assert_same_tensors(picture(whole))
    rates = [[g["lr"] for g in t.optimizer.param_groups] for t in (resumed, whole)]
    assert rates[0] == rates[1]


def test_both_ways_are_the_same_run(tmp_path):
    trainers = [trainer_of(w, tmp_path) for w in (by_optimizer_alone, by_factory)]
    for trainer in trainers:
        set_seed(0)
        trainer.train()
    assert losses(trainers[0]) == losses(trainers[1])
    picture(trainers[0]).assert_same_tensors(picture(trainers[1]))


def test_factory_takes_overrides_and_options(tmp_path):
    kwargs = {
        "lr": 0.01,
        "overrides": {"lm_head": {"rule": "hybrid"}},
        "adjust_lr_fn": "original",
        "momentum": 0.8,
    }
    way = lambda model: {"optimizer_cls_and_kwargs": (TrainerFactory, kwargs)}  # noqa: E731
    trainer = trainer_of(way, tmp_path)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is erlangen.Equivariant
    by_hand = erlangen.param_groups(
        trainer.model, kwargs["overrides"], adjust_lr_fn=kwargs["adjust_lr_fn"]
    )
    assert (
        optimizer.explain()
        == erlangen.Equivariant(by_hand, lr=0.01, adjust_lr_fn="original", momentum=0.8).explain()
    )
    head = next(g for g in optimizer.param_groups if g["role"] == "lm_head")
    assert (head["rule"], head["momentum"], head["lr"]) == ("hybrid", 0.8, 0.01)
    assert kwargs.keys() == {"lr", "overrides", "adjust_lr_fn", "momentum"}


def test_factory_wants_a_learning_rate(tmp_path):
    way = lambda model: {"optimizer_cls_and_kwargs": (TrainerFactory, {})}  # noqa: E731
    trainer = trainer_of(way, tmp_path)
    raises(TypeError, ["learning_rate", "weight_decay", '"lr"'], trainer.create_optimizer)


def test_class_in_place_of_the_factory(tmp_path):
    """Trainer then makes the groups, which have no rule: the error says what to give it."""
    way = lambda model: {"optimizer_cls_and_kwargs": (erlangen.Equivariant, OPTIONS)}  # noqa: E731
    trainer = trainer_of(way, tmp_path)
    raises(ValueError, ["no rule", "Trainer", "TrainerFactory"], trainer.create_optimizer)


def test_weights_that_were_frozen_stay(tmp_path):
    def way(model):
        model.model.embed_tokens.weight.requires_grad_(False)
        return by_factory(model)

    trainer = trainer_of(way, tmp_path)
    before = trainer.model.model.embed_tokens.weight.detach().clone()
    head = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert same_bits(before, trainer.model.model.embed_tokens.weight)
    assert not torch.equal(head, trainer.model.lm_head.weight)
