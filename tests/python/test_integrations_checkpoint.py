"""torch.distributed.checkpoint: a folder that another run takes up with equal bits."""

import erlangen
import pytest
import torch
import torch.distributed.checkpoint as dcp
from integration_helpers import Text, language_model
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture, params_of, same_bits, values
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

RULES = ["spectral", "right_spectral", "left_spectral", "row_norm", "column_norm", "hybrid"]
RULES += ["adamw"]


class Run(Stateful):
    """A model in training, as torch's own recipe hands it to DCP."""

    def __init__(self, seed=0, **options):
        self.model = language_model(seed).to(options.pop("dtype", torch.float32))
        options = {"lr": 0.01, "weight_decay": 0.1, **options}
        self.optimizer = erlangen.Equivariant(self.model, **options)
        self.scheduler = StepLR(self.optimizer, 2, 0.5)

    def state_dict(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state):
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.scheduler.load_state_dict(state["scheduler"])

    def train(self, begin, end):
        losses = []
        for i, batch in enumerate(DataLoader(Text(), 2)):
            if begin <= i < end:
                loss = self.model(**batch).loss
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                losses.append(loss.item())
        return losses


CASES = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16, "stochastic_rounding": True},
    "bfloat16 state": {"state_dtype": "bfloat16"},
}


@pytest.mark.parametrize("case", CASES)
def test_trains_and_resumes(case, tmp_path):
    whole = Run(**CASES[case])
    whole.train(0, 3)
    before = Picture(whole.optimizer)
    dcp.save({"run": whole}, checkpoint_id=tmp_path)
    Picture(whole.optimizer).assert_same(before)
    expected = whole.train(3, 6)

    resumed = Run(seed=1, **CASES[case])
    dcp.load({"run": resumed}, checkpoint_id=tmp_path)
    Picture(resumed.optimizer).assert_same_tensors(before)
    assert resumed.train(3, 6) == expected
    Picture(resumed.optimizer).assert_same_tensors(Picture(whole.optimizer))
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


@pytest.mark.parametrize("case", CASES)
def test_the_probe_changes_nothing(case):
    """DCP makes the state of a fresh optimizer by a step with lr 0 and zero gradients."""
    run = Run(**CASES[case])
    before = values(run.model.parameters())
    run.state_dict()
    assert len(run.optimizer.state) == len(params_of(run.optimizer))  # the probe was there
    assert all(map(same_bits, before, run.model.parameters()))
    assert not any(
        state[name].any()
        for state in run.optimizer.state.values()
        for name in state.keys() & {"momentum_buffer", "exp_avg", "exp_avg_sq"}
    )


@pytest.mark.parametrize("rule", RULES)
def test_probe_before_training(rule):
    """Where a run saves before its first step, matrix rules go on as if it had not. AdamW counts
    the probe as a step, torch's own as well as ours."""

    def trained(optimizer_of, probe):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 5, bias=False))
        optimizer = optimizer_of(model.parameters())
        if probe:
            get_state_dict(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.eye(6)).square().sum().backward()
            optimizer.step()
        return values(model.parameters())

    def ours(params):
        return erlangen.Equivariant([{"params": list(params), "rule": rule}], lr=0.01)

    same = all(map(same_bits, trained(ours, True), trained(ours, False)))
    assert same == (rule != "adamw")
    if rule == "adamw":
        assert not all(map(same_bits, trained(AdamW, True), trained(AdamW, False)))


def test_of_a_tied_head(tmp_path):
    def run(seed):
        model = language_model(seed, tie_word_embeddings=True)
        return model, erlangen.Equivariant(model, lr=0.01)

    model, optimizer = run(0)
    model(**next(iter(DataLoader(Text(), 2)))).loss.backward()
    optimizer.step()
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(states, checkpoint_id=tmp_path)
    twin, other = run(1)
    states = dict(zip(("model", "optimizer"), get_state_dict(twin, other), strict=True))
    dcp.load(states, checkpoint_id=tmp_path)
    set_state_dict(
        twin, other, model_state_dict=states["model"], optim_state_dict=states["optimizer"]
    )
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    Picture(other).assert_same_tensors(Picture(optimizer))
