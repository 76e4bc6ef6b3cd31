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


@pytest.mark.parametrize("other", [lambda w: w, lambda w: w[:4], lambda w: w.T])
def test_head_tied_by_its_data(other):
    """Two parameters over one memory, whose steps would write it at the same time."""
    w = torch.randn(8, 6)
    params = [nn.Parameter(w), nn.Parameter(other(w))]
    words = ["in the memory of param_groups[0], parameter 0", "tied"]
    raises(ValueError, ["parameter 1", *words], lambda: erlangen.RowNorm(params))
    optimizer = erlangen.RowNorm(params[:1])
    again = {"params": params[1:], "rule": "row_norm"}
    raises(ValueError, ["param_groups[1]", *words], lambda: optimizer.add_param_group(again))
    optimizer.param_groups[0]["params"].append(params[1])
    for p in params:
        p.grad = torch.ones_like(p)
    before = w.clone()
    raises(ValueError, ["parameter 1", *words], optimizer.step)
    assert torch.equal(w, before)


def test_weights_tied_by_their_data_after_a_step():
    params = [nn.Parameter(torch.randn(8, 6)) for _ in range(2)]
    optimizer = erlangen.RowNorm(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    params[1].data = params[0].data
    before = params[0].detach().clone()
    words = ["parameter 1", "in the memory of param_groups[0], parameter 0", "tied"]
    raises(ValueError, words, optimizer.step)
    assert torch.equal(params[0], before)


def test_tied_weights_found_when_both_take_steps():
    """One that was frozen, and one whose memory has grown into the other's."""
    w = torch.randn(12, 6)
    frozen = nn.Parameter(w[4:8], requires_grad=False)
    params = [nn.Parameter(w[4:8]), frozen, nn.Parameter(w[:4])]
    optimizer = erlangen.RowNorm(params)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    frozen.requires_grad_(True)
    raises(ValueError, ["parameter 1", "parameter 0", "tied"], optimizer.step)
    frozen.requires_grad_(False)
    optimizer.step()
    params[2].data = w[:8]
    raises(ValueError, ["parameter 0", "parameter 2", "tied"], optimizer.step)


def test_parameters_side_by_side_in_one_memory():
    """As after flattening: rows, columns and slices of one tensor; and parameters of no memory, or
    that nothing writes."""
    w = torch.randn(12, 6)
    params = [nn.Parameter(w[:4]), nn.Parameter(w[4:, :2]), nn.Parameter(w[4:, 2:])]
    freed = [nn.Parameter(torch.randn(4, 6)) for _ in range(2)]
    for p in freed:
        p.untyped_storage().resize_(0)
    meta = [nn.Parameter(torch.empty(4, 6, device="meta")) for _ in range(2)]
    frozen = nn.Parameter(w[:4], requires_grad=False)
    optimizer = erlangen.RowNorm([*params, *freed, *meta, frozen])
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()


def test_head_that_only_the_config_ties():
    """As after a new tensor was assigned to one of the two."""
    model = language_model(tie_word_embeddings=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    words = ["lm_head.weight", "tie_word_embeddings", "tie_weights()"]
    raises(ValueError, words, lambda: erlangen.Equivariant(model, strict=True))


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
