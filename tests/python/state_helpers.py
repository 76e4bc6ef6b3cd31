"""A small model, its optimizer, and bit-exact pictures of it: what tests of whole runs share."""

import copy
import warnings

import erlangen
import pytest
import torch
from torch import nn


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, so that NaN equals itself and -0 is not 0."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def params_of(optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def values(tensors) -> list[torch.Tensor]:
    return [t.detach().clone() for t in tensors]


class Picture:
    """Parameters, state and groups of an optimizer at one moment."""

    def __init__(self, optimizer):
        self.params = values(params_of(optimizer))
        self.states = [
            {k: v.detach().clone() for k, v in optimizer.state[p].items()}
            if p in optimizer.state
            else None
            for p in params_of(optimizer)
        ]
        self.state_count = len(optimizer.state)
        self.group_ids = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        self.options = [
            copy.deepcopy({k: v for k, v in group.items() if k != "params"})
            for group in optimizer.param_groups
        ]

    def assert_same_tensors(self, other: "Picture"):
        assert len(self.params) == len(other.params)
        for i, (a, b) in enumerate(zip(self.params, other.params, strict=True)):
            assert same_bits(a, b), f"parameter {i} differs"
        assert self.state_count == other.state_count
        for i, (a, b) in enumerate(zip(self.states, other.states, strict=True)):
            assert (a is None) == (b is None), f"state of parameter {i} came or went"
            if a is None:
                continue
            assert a.keys() == b.keys(), f"state of parameter {i}"
            for name in a:
                assert same_bits(a[name], b[name]), f"{name} of parameter {i} differs"

    def assert_same(self, other: "Picture"):
        self.assert_same_tensors(other)
        assert self.group_ids == other.group_ids
        assert str(self.options) == str(other.options)


def set_grads(params, generator: torch.Generator):
    """The next gradients of a reproducible sequence."""
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)


def gradients(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(optimizer, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    for _ in range(steps):
        set_grads(params_of(optimizer), generator)
        optimizer.step()
    return values(params_of(optimizer))


def model_of(device="cpu", dtype=torch.float32):
    return nn.Sequential(
        nn.Embedding(7, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6, bias=False)
    ).to(device, dtype)


def optimizer_of(model, **options):
    return erlangen.Equivariant(model, **{"lr": 0.02, "weight_decay": 0.1, **options})


def loss_of(model):
    device = next(model.parameters()).device
    return model(torch.arange(7, device=device)).square().mean()


def live_optimizer(device="cpu"):
    """An optimizer in the middle of a run: every kind of state, gradients for the next step."""

    def parameter(*shape):
        return nn.Parameter(torch.randn(*shape, device=device))

    groups = [
        {"params": [parameter(8, 6), parameter(4, 4)], "rule": "spectral"},
        {"params": [parameter(8, 6)], "rule": "row_norm"},
        {"params": [parameter(8), parameter(8, 6)], "rule": "adamw", "role": "other"},
    ]
    optimizer = erlangen.Equivariant(groups)
    run(optimizer, 2, gradients())
    set_grads(params_of(optimizer), gradients(7))
    return optimizer


def raises(error, words, action):
    """Runs the action, which must raise this error with a message that contains all words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of some before we raise
        with pytest.raises(error) as caught:
            action()
    for word in words:
        assert word in str(caught.value), f"no {word!r} in: {caught.value}"
