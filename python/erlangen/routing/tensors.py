"""Conventions about tensors that are no linear maps."""

import re
from collections.abc import Iterator

from erlangen import _C

from . import modules, numbers
from .findings import RECOGNISED, Finding
from .modules import TRANSPOSE, Place, heads
from .patterns import POSITIONS, PROJECTIONS


def recognise(places: list[Place]) -> dict[int, Finding]:
    """What names and shapes say of tensors that modules hold themselves, by the tensor's id."""
    found: dict[int, Finding] = {}
    around = _Surroundings()
    for place in places:
        weight = modules.weight_of(place.module) if modules.has_one_weight(place.module) else None
        raw = {
            name: p
            for name, p in modules.own_parameters(place.module)
            if p.ndim >= 2 and p is not weight
        }
        if raw:
            found |= _positions(place, raw, around)
            found |= _projections(place, raw)
            found |= _blocks(place, raw)
        for name, child in place.module._modules.items():  # stacks as modules of their own
            stack = None if child is None else dict(child._parameters.items()).get("weight")
            if stack is not None and stack.ndim == 3:
                raw.setdefault(name, stack)
        if raw:
            found |= _stacks(place, raw, around)
    return found


class _Surroundings:
    """What is around modules, looked at once for each module that owns others."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[set[int], list[tuple[int, ...]]]] = {}

    def widths(self, place: Place) -> set[int]:
        """The widths that the config and the layers in and around the module have."""
        return numbers.widths(place.config) | self._look(place.owner or place)[0]

    def maps(self, place: Place) -> list[tuple[int, ...]]:
        """The shapes [out, in] of the maps around the module, a router's among them."""
        return [] if place.owner is None else self._look(place.owner)[1]

    def _look(self, owner: Place) -> tuple[set[int], list[tuple[int, ...]]]:
        if id(owner) not in self._found:
            inside = list(owner.module.modules())
            widths = {width for module in inside for width in _widths_of(module)}
            shapes = [modules.logical_shape(m) for m in inside if modules.is_linear(m)]
            self._found[id(owner)] = widths, [shape for shape in shapes if len(shape) == 2]
        return self._found[id(owner)]


def _widths_of(module) -> Iterator[int]:
    for name in ("out_features", "in_features", "out_channels", "embedding_dim", "embed_dim"):
        if (size := numbers.read(module, name)) is not None:
            yield size
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, (tuple, list)) and len(shape) == 1:
        yield shape[0]


def _positions(place: Place, raw: dict, around: _Surroundings) -> dict[int, Finding]:
    """Tables [.., T, d] with T > 1 whose width d something beside them has too."""
    found = {}
    for name, p in raw.items():
        if re.search(POSITIONS, name) and p.numel() and p.shape[-2] > 1:
            if p.shape[-1] in around.widths(place):
                found[id(p)] = Finding("embedding", RECOGNISED, f"{name}, a table")
    return found


def _projections(place: Place, raw: dict) -> dict[int, Finding]:
    """Maps from one tower to another, held as a tensor that is multiplied from the right."""
    parts = numbers.parts(place.config)
    widths = [numbers.read(part, *numbers.WIDTHS) for part in parts]
    found = {}
    for name, p in raw.items():
        if re.search(PROJECTIONS, name) and p.ndim == 2 and p.shape[0] != p.shape[1]:
            if set(p.shape) <= set(widths) and p.shape[1] == _text_width(place):
                found[id(p)] = Finding("dense", RECOGNISED, "between towers", [TRANSPOSE])
    return found


def _text_width(place: Place) -> int | None:
    return numbers.read(numbers.flag(place.config, "text_config"), *numbers.WIDTHS)


def _stacks(place: Place, raw: dict, around: _Surroundings) -> dict[int, Finding]:
    """Experts' matrices in stacks [E, out, in] or [E, in, out], as their equations tell."""
    maps = around.maps(place)
    stacks = _C.recognise_stacks(
        {name: list(p.shape) for name, p in raw.items()},
        counts=numbers.experts(place) | ({shape[0] for shape in maps} - {1}),
        maps=maps,
        width=numbers.read(place.config, *numbers.WIDTHS),
    )
    found = {}
    for name, (role, is_transposed, has_halves) in stacks.items():
        # Gate and up in one: as halves where the code cuts them so, else unknown.
        is_cut = has_halves and modules.calls(place.module, "chunk")
        layout = ([TRANSPOSE] if is_transposed else []) + (heads(2, -2) if is_cut else [])
        found[id(raw[name])] = Finding(role, RECOGNISED, "a stack of experts", layout)
    return found


def _blocks(place: Place, raw: dict) -> dict[int, Finding]:
    """Experts' matrices one below the other, [E * f, d] each, as DBRX stores them."""
    count = numbers.read(place.module, *numbers.EXPERTS)
    names = ("w1", "v1", "w2")
    held = [raw.get(name) for name in names]
    stacks = [p for p in held if p is not None and p.ndim == 2]
    if count is None or len(stacks) != len(held):
        return {}
    shape = tuple(stacks[0].shape)
    if shape[0] % count or any(tuple(p.shape) != shape for p in stacks):
        return {}
    width = numbers.read(place.module, *numbers.WIDTHS)
    if width is not None and width != shape[1]:
        return {}
    into, out_of = heads(count, -2), [*heads(count, -2), TRANSPOSE]
    roles = (("expert_in", into), ("expert_in", into), ("expert_out", out_of))
    why = "experts one below the other"
    return {
        id(p): Finding(role, RECOGNISED, why, layout)
        for p, (role, layout) in zip(stacks, roles, strict=True)
    }
