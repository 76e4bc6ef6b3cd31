"""Bindings of liberlangen, as python/bindings.cpp defines them. Not the public interface.

All raise ValueError and TypeError for what they cannot take.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

class Plan:
    """What steps keep from one to the next: batches of parameters, made once."""

    def __init__(self) -> None: ...

def step(
    plan: Plan,
    param_groups: list[dict[str, Any]],
    state: dict[Tensor, Any],
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    capturing: bool = False,
) -> None:
    """One step over param_groups; creates missing state in `state`."""

def check_group(dict: dict[str, Any], index: int, /) -> None:
    """Raises for a group that no step can take."""

def check_states(dict: dict[str, Any], index: int, state: dict[Tensor, Any], /) -> None:
    """Raises for loaded state that does not fit its parameters."""

def check_params_apart(groups: Sequence[Sequence[Tensor]], /) -> None:
    """Raises for parameters that share memory."""

def explain(param_groups: list[dict[str, Any]], full: bool = False) -> str:
    """The table of Equivariant.explain()."""

class ModulePlace:
    """A module, and where in the model it stands, as conventions see it (csrc/routing/places.h)."""

    def __init__(self) -> None: ...

    kind: str
    type: int
    is_list: bool
    is_container: bool
    users: list[tuple[int, str]]
    map: Sequence[int] | None
    stated: dict[str, int]
    config: dict[str, int]
    experts: set[int]
    own_experts: int | None
    stacks: set[int]

def recognise_maps(tree: list[ModulePlace], /) -> dict[int, tuple[str, str, list[dict] | None]]:
    """Role, why and layout of each linear map that a convention names, by its place's index."""

def recognise_stacks(
    tensors: dict[str, list[int]],
    *,
    counts: set[int],
    maps: list[tuple[int, ...]],
    width: int | None,
) -> dict[str, tuple[str, bool, bool]]:
    """Role, whether stored as [E, in, out], whether gate and up are in one, of experts' stacks."""

CHAIN: str  # the reason of maps that follow each other
OPEN_HEADS: str  # what a reason ends with where head counts are open

def is_padded(rows: int, size: int) -> bool:
    """Whether so many rows are a vocabulary's of this size, padded to a multiple of 8 or not."""

def name_patterns() -> dict[str, str]:
    """Regular expressions about names of tensors, modules and classes."""

def assumed_message(
    params: list[tuple[str, list[int], str, str]],
    names: list[str],
    matrices: int,
    elements: int,
    all: bool,
) -> str:
    """What routing only assumes, in words."""

def role_names() -> list[str]: ...
def rule_names() -> list[str]: ...
def option_names() -> list[str]: ...
def state_names() -> list[str]:
    """The entries of a parameter's state."""

def plain(name: str, value: Any, /) -> Any:
    """Numbers, lists and dicts of other packages as Python's own; `name` stands in errors."""

def default_options() -> dict[str, Any]: ...
def role_options(role: str, adjust_lr_fn: str = "match_rms_adamw") -> dict[str, Any]:
    """The options that a role stands for."""

def preset_options(name: str, /) -> dict[str, Any]:
    """The options that a preset class stands for."""

def kernel_count() -> int:
    """Parameters stepped by fused kernels, for tests."""

def polar_kernel_count() -> int:
    """Batches that the kernel of the polar iteration has taken, for tests."""

def symmetric_kernel_count() -> int:
    """Symmetric products that a kernel of our own has taken, for tests."""

def symmetric_product(
    x: Tensor, y: Tensor | None = None, c: Tensor | None = None, beta: float = 0.0
) -> Tensor:
    """beta * c + x @ y.T of x, y [n, k], symmetric (y=None: x), for benchmarks and tests."""

def check_kernels(device: str) -> list[tuple[str, str]]:
    """Runs every kernel for the device on its cases: [(kernel, what failed)], "" for nothing."""

def remembered_outcomes() -> list[tuple[str, str]]:
    """The kernels that steps have had checked in this process, for tests."""

def use_kernels(use: bool) -> None:
    """Fused kernels where there are any, or the reference operations; for tests."""
