"""Conventions about tensors that are no linear maps, and about experts and their routers."""

import re
from collections.abc import Iterable
from dataclasses import replace

from . import modules, numbers
from .conventions import EXPERT_STACKS
from .declarations import router_options
from .findings import RECOGNISED, Finding
from .layers import heads
from .matching import MapsUnder, solve
from .modules import TRANSPOSE, Place
from .patterns import EXPERTS, POSITIONS, PROJECTIONS, ROUTERS


def recognise(places: list[Place]) -> dict[int, Finding]:
    """What names and shapes say of tensors that modules hold themselves, by the tensor's id."""
    found: dict[int, Finding] = {}
    for place in places:
        weight = modules.weight_of(place.module) if modules.has_one_weight(place.module) else None
        raw = {
            name: p
            for name, p in modules.own_parameters(place.module)
            if p.ndim >= 2 and p is not weight
        }
        if raw:
            found |= _positions(place, raw)
            found |= _projections(place, raw)
            found |= _blocks(place, raw)
        for name, child in place.module._modules.items():  # stacks as modules of their own
            stack = None if child is None else dict(child._parameters.items()).get("weight")
            if stack is not None and stack.ndim == 3:
                raw.setdefault(name, stack)
        if raw:
            found |= _stacks(place, raw)
    return found


def _positions(place: Place, raw: dict) -> dict[int, Finding]:
    """Tables [.., T, d] with T > 1 whose width d something beside them has too."""
    found = {}
    for name, p in raw.items():
        if re.search(POSITIONS, name) and p.numel() and p.shape[-2] > 1:
            if p.shape[-1] in _widths(place):
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


def _widths(place: Place) -> set[int]:
    """The widths that the config and the layers in and around the module have."""
    found = numbers.widths(place.config)
    owner = place.owner or place
    for module in owner.module.modules():
        for name in ("out_features", "in_features", "out_channels", "embedding_dim", "embed_dim"):
            if (size := numbers.read(module, name)) is not None:
                found.add(size)
        shape = getattr(module, "normalized_shape", None)
        if isinstance(shape, (tuple, list)) and len(shape) == 1:
            found.add(shape[0])
    return found


def _stacks(place: Place, raw: dict) -> dict[int, Finding]:
    """Experts' matrices in stacks [E, out, in] or [E, in, out], as their equations tell."""
    for names, parts in EXPERT_STACKS:
        held = [raw.get(name) for name in names.split()]
        stacks = [p for p in held if p is not None and p.ndim == 3]
        if len(stacks) != len(held):
            continue
        counts = numbers.experts(place) | ({shape[0] for shape in _maps_around(place)} - {1})
        if counts.isdisjoint(p.shape[0] for p in stacks):
            continue
        plain = [tuple(p.shape) for p in stacks]
        swapped = [shape[:1] + shape[:0:-1] for shape in plain]
        widths = _widths_of_inputs(place, stacks[0].shape[0])
        ways = [
            shapes
            for shapes in (plain, swapped)
            if (solved := solve(parts, shapes, {})) and (not widths or solved["_d"] in widths)
        ]
        if len(ways) != 1:
            continue
        storage = [TRANSPOSE] if ways[0] is swapped else []
        found = {}
        for part, p in zip(parts, stacks, strict=True):
            # Gate and up in one: as halves where the code cuts them so, else unknown.
            is_cut = part.layout and modules.calls(place.module, "chunk")
            layout = storage + (heads(2, -2) if is_cut else [])
            found[id(p)] = Finding(part.role, RECOGNISED, "a stack of experts", layout)
        return found
    return {}


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


def _widths_of_inputs(place: Place, count: int) -> set[int]:
    """What the experts read: the config's width, and that of maps onto as many logits."""
    width = numbers.read(place.config, *numbers.WIDTHS)
    found = set() if width is None else {width}
    if not found:
        found = {shape[1] for shape in _maps_around(place) if shape[0] == count}
    return found


def _maps_around(place: Place) -> list[tuple[int, ...]]:
    """The shapes [out, in] of the maps in what is around the module, a router's among them."""
    if place.owner is None:
        return []
    maps = [m for m in place.owner.module.modules() if modules.is_linear(m)]
    return [shape for m in maps if (shape := modules.logical_shape(m))]


# Experts as a list of modules


def experts_apart(
    places: list[Place], maps_under: MapsUnder, of_maps: dict[int, Finding]
) -> dict[int, Finding]:
    """Routers by name, with as many rows as there are experts beside them, and the maps of experts
    in a list, with as many entries as the router has rows or as is stated."""
    found: dict[int, Finding] = {}
    by_id = {id(place.module): place for place in places}
    for anchor, parts in maps_under.values():
        lists, stacked = _experts_of(anchor)
        counts = numbers.experts(anchor) | {
            numbers.read(module, *numbers.EXPERTS)
            for name, child in anchor.module._modules.items()
            if child is not None and re.search(EXPERTS, name)
            for module in child.modules()
        }
        sizes = {len(experts) for experts in lists} | stacked
        for name, versions in parts.items():
            rows = modules.logical_shape(versions[0].module)[:1]
            if not re.fullmatch(ROUTERS, name) or not rows or rows[0] < 2:
                continue
            if rows[0] in sizes or (rows[0] in counts and (sizes or _names_experts(parts))):
                counts = counts | {rows[0]}
                for place in versions:
                    storage = modules.storage(place.module)
                    why = f"{rows[0]} rows, one for each expert"
                    options = router_options(place)
                    found[id(place.module)] = Finding("router", RECOGNISED, why, storage, options)
        for experts in lists:
            if len(experts) not in counts:
                continue
            for expert in experts:
                for module in expert.modules():
                    finding = of_maps.get(id(module))
                    if finding is None or id(module) not in by_id:
                        continue
                    role = {"mlp_in": "expert_in", "mlp_out": "expert_out"}.get(finding.role)
                    if role is not None:
                        found[id(module)] = replace(finding, role=role, why="an expert's MLP")
    return found


def _names_experts(names: Iterable[str]) -> bool:
    return any(re.search(EXPERTS, name) for name in names)


def _experts_of(anchor: Place) -> tuple[list[list], set[int]]:
    """The lists of modules that are called experts, and the lengths of stacks in such a module."""
    lists, stacked = [], set()
    for name, child in anchor.module._modules.items():
        if child is None or not re.search(EXPERTS, name):
            continue
        children = [c for c in child._modules.values() if c is not None]
        if len(children) > 1 and len({type(c) for c in children}) == 1:
            lists.append(children)
        for module in (child, *children):
            stacked |= {
                p.shape[0] for p in module._parameters.values() if p is not None and p.ndim == 3
            }
    return lists, stacked
