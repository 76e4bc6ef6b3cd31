"""Conventions held against a model: which parts have their names and obey their equations."""

import re
from collections.abc import Iterable, Sequence
from functools import cache

from torch import nn

from . import modules, numbers
from .conventions import CONVENTIONS, MLP_BY_ORDER, Convention, Part
from .findings import RECOGNISED, Finding
from .modules import Place
from .patterns import MLP_CLASSES

_DEPTH = 3  # of the names of a part, in components

Parts = dict[str, list[Place]]  # under a name relative to some module: a map, and its copies
MapsUnder = dict[int, tuple[Place, Parts]]  # by the id of that module


def named_maps(places: list[Place]) -> MapsUnder:
    """For each module, by id, the linear maps under it by their relative names."""
    found: MapsUnder = {}
    for place in places:
        if not modules.is_linear(place.module) or place.is_adapter:
            continue
        paths = [(user, name) for user, name in place.users]
        for _ in range(_DEPTH):
            for anchor, name in paths:
                _, parts = found.setdefault(id(anchor.module), (anchor, {}))
                versions = parts.setdefault(name, [])
                if all(place is not version for version in versions):
                    versions.append(place)
            paths = [(u, f"{n}.{name}") for anchor, name in paths for u, n in anchor.users]
    return found


def recognise(maps_under: MapsUnder) -> dict[int, Finding]:
    """What conventions say of linear maps, by the module's id: the word of the one that covers most
    parts (in the narrowest module, of those)."""
    found: dict[int, tuple[tuple, Finding]] = {}
    for anchor, maps in maps_under.values():
        for convention, names in _candidates(maps):
            if _is_torn_out(convention, names, maps):
                continue
            parts = [(i, maps[name]) for i, name in enumerate(names) if name != "-"]
            for version in range(max(len(versions) for _, versions in parts)):
                chosen = [(i, v[min(version, len(v) - 1)]) for i, v in parts]
                findings, is_sure = _read(convention, anchor, chosen)
                for place, finding in findings:
                    rank = (is_sure, len(chosen), bool(finding.layout), anchor.index)
                    best = found.get(id(place.module))
                    if best is None or rank > best[0]:
                        found[id(place.module)] = (rank, finding)
    by_class = _in_mlp_classes(maps_under)
    return by_class | {key: finding for key, (_, finding) in found.items()}


def _in_mlp_classes(maps_under: MapsUnder) -> dict[int, Finding]:
    """The maps of a class that is called an MLP: two, into and out of its neurons, or three."""
    found = {}
    for anchor, maps in maps_under.values():
        if not re.search(MLP_CLASSES, modules.class_name(anchor.module)):
            continue
        if any(type(user.module) in (nn.ModuleList, nn.ModuleDict) for user, _ in anchor.users):
            continue  # one of a list: of experts, for all that the class says
        inside = sorted((v[0] for v in maps.values()), key=lambda place: place.index)
        if len({id(p) for p in inside}) != len(maps):
            continue
        shapes = [modules.logical_shape(place.module) for place in inside]
        if len(set(shapes)) == 1 and len(inside) != 2:
            continue  # w1, w2, w3 or gate, up, down, or a chain?
        for convention in MLP_BY_ORDER.get(len(inside), ()):
            findings, _ = _read(convention, anchor, list(enumerate(inside)))
            if findings:
                found |= {id(place.module): finding for place, finding in findings}
                break
        else:
            # In, out, in may as well be a gated MLP: nothing is said of it.
            if _is_chain(shapes) and shapes[0] != shapes[-1]:
                for place in inside:
                    storage = modules.storage(place.module)
                    chain = Finding("dense", RECOGNISED, "a chain of maps", storage)
                    found[id(place.module)] = chain
    return found


def _is_chain(shapes: list[tuple[int, ...]]) -> bool:
    return len(shapes) > 1 and all(
        len(a) == len(b) == 2 and a[0] == b[1] for a, b in zip(shapes, shapes[1:], strict=False)
    )


@cache
def _by_first_name() -> dict[str, list[tuple[Convention, tuple[str, ...]]]]:
    table: dict[str, list] = {}
    for convention in CONVENTIONS:
        for spelling in convention.spellings:
            names = tuple(spelling.split())
            table.setdefault(names[0], []).append((convention, names))
    return table


def _candidates(maps: Parts) -> Iterable[tuple[Convention, tuple[str, ...]]]:
    """The spellings of which every name is there, but for those that leave out a part which a
    longer one names: what is two thirds of a gated MLP is no MLP."""
    found = [
        (convention, names)
        for name in maps
        for convention, names in _by_first_name().get(name, ())
        if all(part == "-" or part in maps for part in names)
    ]
    sets = [frozenset(names) - {"-"} for _, names in found]
    for candidate, names in zip(found, sets, strict=True):
        if not any(names < other for other in sets):
            yield candidate


def _is_torn_out(convention: Convention, names: tuple[str, ...], maps: Parts) -> bool:
    """Two square maps beside a third that could be either: part of something else."""
    pairs = zip(convention.parts, names, strict=False)
    named = {name: part for part, name in pairs if name != "-"}
    shapes = {modules.logical_shape(maps[name][0].module) for name in named}
    if not any(part.is_output for part in named.values()):
        return False
    if len(named) != 2 or len(shapes) > 1 or "." in names[0] or len(set(*shapes)) > 1:
        return False
    others = [v[0] for name, v in maps.items() if name not in names and "." not in name]
    return any(modules.logical_shape(place.module) in shapes for place in others)


def _read(
    convention: Convention, anchor: Place, chosen: list[tuple[int, Place]]
) -> tuple[list[tuple[Place, Finding]], bool]:
    """The parts' findings, and whether every size is known; nothing where equations fail."""
    if convention.beside and convention.beside not in dict(anchor.module._modules.items()):
        return [], False
    holders = [anchor]
    for _, place in chosen:  # BERT's counts stand in what holds queries, not in what holds all
        holders += [user for user, _ in place.users if user not in holders]
    if anchor.owner is not None:
        holders.append(anchor.owner)
    known = numbers.sources(holders, anchor.config) or [{}]
    shapes = [modules.logical_shape(place.module) for _, place in chosen]
    places = [place for _, place in chosen]
    ways = [[parts[i] for i, _ in chosen] for parts in (convention.parts, *convention.variants)]
    ways = [parts for parts in ways if _tells_sides(parts, shapes, places)]
    for parts in ways:
        for sizes in known:
            solved = solve(parts, shapes, sizes)
            if solved is not None and _is_closed(convention, parts, solved, sizes):
                return _findings(convention, parts, places, solved), True
    needed = {name for i, _ in chosen for name in _open_names(convention.parts[i])}
    if convention.must_close or any(needed & sizes.keys() for sizes in known):
        return [], False  # what is stated contradicts the shapes, or too little is
    for parts in ways:
        solved = solve(parts, shapes, {})
        if solved is not None:
            return _findings(convention, parts, places, solved), False
    return [], False


def _open_names(part: Part) -> set[str]:
    """The sizes that the part's layout needs and that somebody may state."""
    return {name for step in part.layout for name in _names_in(step) if name[0] != "_"}


def _names_in(step: tuple) -> Iterable[str]:
    counts = step[1] if isinstance(step[1], tuple) else (step[1],)
    for count in counts:
        yield from _code(count).co_names


def _is_closed(convention: Convention, parts: list[Part], solved: dict, known: dict) -> bool:
    """Whether the layouts' sizes are found, and, if the convention asks for it, everything that
    its shapes name is stated and not only solved for."""
    if convention.must_close:
        names = {n for part in parts for text in _sizes(part) for n in _code(text).co_names}
        return all(name in known or name[0] == "_" for name in names)
    return all(name in solved for part in parts for step in part.layout for name in _names_in(step))


def _tells_sides(parts: list[Part], shapes: list[tuple], places: list[Place]) -> bool:
    """Whether inputs and outputs of the block can be told apart: by shape, or, where the one could
    be the other, because outputs are defined last as everybody does."""
    for out, out_shape, out_place in zip(parts, shapes, places, strict=True):
        for part, shape, place in zip(parts, shapes, places, strict=True):
            is_either = shape == out_shape or (len(parts) == 2 and shape == out_shape[::-1])
            if out.is_output and not part.is_output and is_either:
                if place.index > out_place.index:
                    return False
    return True


def _findings(
    convention: Convention, parts: list[Part], places: list[Place], sizes: dict
) -> list[tuple[Place, Finding]]:
    found = []
    for part, place in zip(parts, places, strict=True):
        layout = _layout(part, sizes)
        why = convention.what
        if layout is None:
            why += ", how many heads is not said: one matrix"
        storage = modules.storage(place.module)
        found.append((place, Finding(part.role, RECOGNISED, why, storage + (layout or []))))
    return found


def _layout(part: Part, sizes: dict[str, int]) -> list[dict] | None:
    """The layout's steps in numbers; None where a size is open."""
    steps = []
    for step in part.layout:
        if any(name not in sizes for name in _names_in(step)):
            return None
        if step[0] == "heads":
            count = evaluate(step[1], sizes)
            if count > 1:
                steps.append({"heads": count, "dim": step[2]})
        else:
            steps.append({"sections": [evaluate(size, sizes) for size in step[1]], "dim": -2})
    return steps


# Equations


def evaluate(expression: str, sizes: dict[str, int]) -> int:
    """The value of a sum of products of sizes."""
    return eval(_code(expression), {"__builtins__": {}}, sizes)  # our own data


def _sizes(part: Part) -> list[str]:
    """The expressions of the part's shape, one for each dimension."""
    return [text.strip() for text in part.shape.split(",")]


@cache
def _code(expression: str):
    return compile(expression, "<shape>", "eval")


def solve(
    parts: Sequence[Part], shapes: list[tuple[int, ...]], known: dict[str, int]
) -> dict[str, int] | None:
    """The sizes with which every part has its shape; None if there are none. Names that nothing
    determines stay out."""
    equations = []
    for part, shape in zip(parts, shapes, strict=True):
        expressions = _sizes(part)
        if len(expressions) != len(shape):
            return None
        equations += zip(expressions, shape, strict=True)
    used = {name for text, _ in equations for name in _code(text).co_names}
    sizes = {name: value for name, value in known.items() if name in used}
    while equations:
        left = []
        for text, value in equations:
            unknown = [name for name in _code(text).co_names if name not in sizes]
            if len(unknown) > 1:
                left.append((text, value))
                continue
            if not unknown:
                if evaluate(text, sizes) != value:
                    return None
                continue
            (name,) = unknown
            at_zero = evaluate(text, sizes | {name: 0})
            slope = evaluate(text, sizes | {name: 1}) - at_zero  # every size stands in it once
            size, rest = divmod(value - at_zero, slope)
            if rest or size < 1:
                return None
            sizes[name] = size
        if len(left) == len(equations):
            break
        equations = left
    if sizes.get("heads", 1) % sizes.get("kv_heads", 1):
        return None
    return sizes
