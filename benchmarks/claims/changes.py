"""Tensors with a claim, what belongs together, and changes that are made for one run."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

MOST_TRIALS = 64  # of ways to move what stands beside the matrices
MOST_RUNS = 400  # of a model, for one block


class TooManyWays(Exception):
    """What belongs to a block could be more than is tried."""


class Outcome(NamedTuple):
    kind: str  # heads, neurons, experts
    names: list[str]
    status: str  # right, wrong; unsure: sizes disagree, or no test decides; untested: not formed
    reason: str


@dataclass
class Claim:
    """A tensor with a role, by flat positions: parts [..., rows, columns], each logical matrix of
    its layout with the batch in front, and row_parts, those of a vector of one entry a row."""

    name: str
    role: str
    shape: tuple
    parts: list[Tensor]
    heads: int  # 1 if the layout names none
    side: int  # the dimension that heads cut: rows (-2) or columns (-1)
    bias: str | None = None
    row_parts: list[Tensor] = field(default_factory=list)
    bias_parts: list[Tensor] = field(default_factory=list)  # the same, if there is one of that size


def cut(layout: list | None, index: Tensor) -> list[Tensor]:
    """The verbs of a layout, done to positions; heads are the third dimension from behind."""
    found = [index]
    for step in layout or []:
        dim = step.get("dim", -2)
        if "flatten" in step:
            found = [x.flatten(1) for x in found]
        elif "transpose" in step:
            found = [x.mT for x in found]
        elif "sections" in step:
            found = [part for x in found for part in x.split(step["sections"], dim)]
        elif "heads" in step:
            at = -2 if dim == -2 else -1
            found = [x.unflatten(at, (step["heads"], -1)) for x in found]
            found = found if dim == -2 else [x.movedim(-2, -3) for x in found]
        else:
            rows = [x if dim == -2 else x.mT for x in found]
            if step["pairs"] == "interleaved":
                found = [torch.cat([x[..., ::2, :], x[..., 1::2, :]], -1) for x in rows]
            else:
                found = [torch.cat(x.chunk(2, -2), -1) for x in rows]
    return found


def claims_of(groups: list[dict], tensors: dict[str, Tensor]) -> tuple[dict, list[Outcome]]:
    """The claims by name, and what is wrong with those of which the layout does not fit."""
    result, wrong = {}, []
    for group in groups:
        layout = group.get("layout")
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if p.ndim < 2:
                continue
            index = torch.arange(p.numel()).reshape(p.shape)
            steps = [step for step in layout or [] if "heads" in step]
            heads, side = (steps[0]["heads"], steps[0].get("dim", -2)) if steps else (1, -2)
            try:
                parts = cut(layout, index)
            except RuntimeError as error:
                wrong.append(Outcome("layout", [name], "wrong", f"{layout}: {error}"))
                continue
            claim = Claim(name, group["role"], tuple(p.shape), parts, heads, side)
            claim.bias = bias_of(name, tensors)
            claim.row_parts = parts_of_rows(layout, p.shape)
            if claim.bias and tensors[claim.bias].numel() == sum(
                x.numel() for x in claim.row_parts
            ):
                claim.bias_parts = claim.row_parts
            result[name] = claim
    return result, wrong


def parts_of_rows(layout: list | None, shape: tuple) -> list[Tensor]:
    """What a layout makes of a bias [(E,) rows], or nothing where it cuts columns."""
    steps = list(layout or [])
    transposed = any("transpose" in step for step in steps)
    steps = [step for step in steps if not {"transpose", "flatten"} & step.keys()]
    rows = shape[-1] if transposed else shape[0] if len(shape) != 3 else shape[-2]
    whole = (*shape[:-2], rows) if len(shape) == 3 else (rows,)
    index = torch.arange(math.prod(whole)).reshape(*whole, 1)
    try:
        return cut(steps, index)
    except RuntimeError:
        return []


def bias_of(name: str, tensors: dict[str, Tensor]) -> str | None:
    stem = name.removesuffix("weight")
    for candidate in (f"{stem}bias" if stem != name else None, f"{name}_bias"):
        if candidate in tensors:
            return candidate
    return None


# Changes of tensors


class Change:
    """Positions that get what other positions had, by name of the tensor."""

    def __init__(self):
        self.moves: dict[str, list[tuple[Tensor, Tensor, str]]] = {}

    def move(self, name: str, to: Tensor, source: Tensor, of: str | None = None) -> None:
        self.moves.setdefault(name, []).append((to.flatten(), source.flatten(), of or name))

    def apply(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        for name, moves in self.moves.items():
            flat = before[name].flatten().clone()
            for to, source, of in moves:
                flat[to] = before[of].flatten()[source]
            after[name] = flat.reshape(before[name].shape)


class Turn:
    """Rows (or, of what takes them, columns) of some positions multiplied by a matrix."""

    def __init__(self):
        self.turns: dict[str, list] = {}

    def rows(self, name: str, index: Tensor, turn: Tensor) -> None:
        self.turns.setdefault(name, []).append((index, lambda x: turn.to(x.dtype) @ x))

    def columns(self, name: str, index: Tensor, turn: Tensor) -> None:
        self.turns.setdefault(name, []).append((index, lambda x: x @ turn.mT.to(x.dtype)))

    def apply(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        for name, turns in self.turns.items():
            flat = before[name].flatten().clone()
            for index, function in turns:
                flat[index] = function(flat[index])
            after[name] = flat.reshape(before[name].shape)


class Model:
    """A model that runs on some input, whose tensors can be changed for one run."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], list[Tensor]]):
        self.model, self.run, self.runs = model, run, 0
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        is_double = any(t.dtype == torch.float64 for t in self.tensors.values())
        self.same = 3e-5 if is_double else 1e-3  # softmaxes are float32 in many models
        self.changed = 20 * self.same if is_double else 5 * self.same
        self.before = self.outputs()
        again = self.difference()
        if not all(x.isfinite().all() for x in self.before):
            raise ValueError("outputs are not finite")
        if not self.before or again > 1e-9:
            raise ValueError("outputs differ from run to run")

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        torch.manual_seed(0)
        return [x.double() for x in self.run(self.model)]

    def difference(self, *changes) -> float:
        """The largest, beside the outputs' own size."""
        self.runs += 1
        if self.runs > MOST_RUNS:
            raise TooManyWays
        kept = {name: t.detach().clone() for name, t in self.tensors.items()}
        now = dict(kept)
        for change in changes:
            after = {}
            change.apply(now, after)
            now |= after
        changed = [name for name in kept if now[name] is not kept[name]]
        try:
            for name in changed:
                self.tensors[name].data.copy_(now[name])
            after = self.outputs()
        finally:
            for name in changed:
                self.tensors[name].data.copy_(kept[name])
        worst = 0.0
        for a, b in zip(self.before, after, strict=True):
            if a.shape != b.shape:
                return math.inf
            if a.numel():
                worst = max(worst, ((a - b).abs().max() / (a.std() + 1e-12)).item())
        return worst if worst == worst else math.inf

    @contextlib.contextmanager
    def zeroed(self, names: list[str]) -> Iterator[None]:
        """The model with these tensors zero, until it is left."""
        kept, before = {name: self.tensors[name].detach().clone() for name in names}, self.before
        try:
            for name in names:
                self.tensors[name].data.zero_()
            self.before = self.outputs()
            yield
        finally:
            for name in names:
                self.tensors[name].data.copy_(kept[name])
            self.before = before

    def is_same(self, *changes) -> bool:
        return self.difference(*changes) < self.same

    def depends_on(self, names: list[str]) -> bool:
        """On each, so much that a change of it would be seen."""
        return all(self.difference(Noise([name])) > 5 * self.changed for name in names)

    def is_changed(self, *changes) -> bool:
        return self.difference(*changes) > self.changed


class Relabel:
    """Whole numbers that name what is in another order now."""

    def __init__(self, names: list[str], order: Tensor):
        self.names, self.places = names, order.argsort()

    def apply(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        for name in self.names:
            after[name] = self.places[before[name].long()].to(before[name].dtype)


class Noise:
    """Tensors with something else in them: does the output depend on them?"""

    def __init__(self, names: list[str]):
        self.names = names

    def apply(self, before, after):
        generator = torch.Generator().manual_seed(1)
        for name in self.names:
            noise = torch.randn(before[name].shape, generator=generator, dtype=torch.float64)
            after[name] = before[name] + noise.to(before[name]) * 0.5


# What belongs together


def parent(name: str) -> str:
    return name.rpartition(".")[0]


def is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(folder + ".")


def sets(outer: list[str], inner: list[str]) -> tuple[list[tuple[str, list, list]], list[str]]:
    """For each tensor that ends a block, the nearest enclosing module with tensors that begin one,
    and all that are there; and the names of those that are in none."""
    folders = {}
    for name in outer:
        folder = parent(name)
        while folder and not any(is_below(n, folder) for n in inner):
            folder = parent(folder)
        if any(is_below(n, folder) for n in inner):
            folders[folder] = None
    result = []
    for folder in folders:
        inside = [f for f in folders if f != folder and is_below(f, folder)]

        def own(names, folder=folder, inside=inside):
            return [
                n for n in names if is_below(n, folder) and not any(is_below(n, f) for f in inside)
            ]

        result.append((folder, own(inner), own(outer)))
    used = {n for _, a, b in result for n in (*a, *b)}
    return result, [n for n in (*inner, *outer) if n not in used]


def chosen_extras(extras: dict) -> Iterator[list]:
    """Which of what stands beside the matrices moves along: all, none, then the rest."""
    keys = list(extras)
    subsets = [keys, []]
    for size in range(len(keys) - 1, 0, -1):
        subsets += [list(c) for c in itertools.combinations(keys, size)]
    for subset in subsets[:MOST_TRIALS]:
        yield [extra for key in subset for extra in extras[key]]


def kind_of(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
