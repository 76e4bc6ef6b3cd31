"""Mistakes that are easily made with a real model: what the optimizer says of them."""

import copy

import erlangen
import pytest
import torch
from integration_helpers import Text, language_model
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture, params_of, raises
from torch import nn

OPTIONS = {"lr": 0.01, "weight_decay": 0.1}


def trained(model):
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    tokens = Text()[0]["input_ids"][None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    return optimizer


def test_tied_head_declared_twice():
    model = language_model(tie_word_embeddings=True)
    groups = [
        {"params": list(model.model.embed_tokens.parameters()), "rule": "row_norm"},
        {"params": list(model.lm_head.parameters()), "rule": "row_norm", "center": True},
    ]
    words = ["param_groups[1], parameter 0", "same tensor as param_groups[0], parameter 0", "once"]
    raises(ValueError, words, lambda: erlangen.Equivariant(groups))


def test_head_that_only_the_config_ties():
    """As after a new tensor was assigned to one of the two."""
    model = language_model(tie_word_embeddings=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    words = ["lm_head.weight", "tie_word_embeddings", "tie_weights()"]
    raises(ValueError, words, lambda: erlangen.Equivariant(model))


def test_everything_frozen():
    model = language_model().requires_grad_(False)
    raises(ValueError, ["requires a gradient"], lambda: erlangen.Equivariant(model))


def test_override_of_a_frozen_parameter():
    model = language_model()
    model.lm_head.requires_grad_(False)
    overrides = {"lm_head.weight": {"rule": "hybrid"}}
    words = ["lm_head.weight", "requires_grad is False"]
    raises(ValueError, words, lambda: erlangen.param_groups(model, overrides))


@pytest.mark.parametrize("loaded", [False, True])
def test_model_moved_after_the_first_step(loaded):
    """Meta stands for any other device. Loading the state again is what the error advises."""
    optimizer = trained(language_model())
    saved = copy.deepcopy(optimizer.state_dict())
    for p in params_of(optimizer):
        moved = nn.Parameter(p.detach().to("meta"))
        moved.grad = torch.empty_like(moved)
        torch.utils.swap_tensors(p, moved)
    if loaded:
        optimizer.load_state_dict(saved)
        for state in optimizer.state.values():
            assert {value.device.type for value in state.values()} == {"meta"}
        return
    options = str(Picture(optimizer).options)
    words = ["param_groups[0]", "embed_tokens.weight", "on cpu", "meta", "before the first step"]
    raises(ValueError, words, optimizer.step)
    assert str(Picture(optimizer).options) == options
