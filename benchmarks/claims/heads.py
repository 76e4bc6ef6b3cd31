"""Attention heads: moved round, turned, and cut across."""

import copy
from dataclasses import replace

import torch

from .changes import (
    Change,
    Claim,
    Model,
    Outcome,
    TooManyWays,
    is_below,
    kind_of,
    parent,
    sets,
)
from .slots import exchange, split
from .turns import Turns

TOO_MANY = "there are more ways to move it than are tried"
PARTS = ("parts", "row_parts", "bias_parts")


class Heads(Turns):
    """With what decides."""

    def cannot(self) -> str | None:
        """Why nothing can be said about them."""
        if any(c.heads != self.heads for c in self.outer):
            return "outputs with different numbers of heads"
        if any(len(c.shape) != 2 or part.ndim != 3 for c in self.inner for part in c.parts):
            return "more than a batch of heads"
        if not self.model.depends_on(self.names):
            return "the outputs hardly depend on one of them"
        return None

    def crossed(self, labels: dict, kv: int, is_tiled: bool, extras: list = ()) -> Change:
        """Half of the rows of two heads, of different groups where there are several, exchanged in
        all tensors."""
        each = self.heads // kv
        other = (1 if is_tiled else each) if kv > 1 else 1
        pairs = {"q": (0, other), "kv": (0, 1) if kv > 1 else (0, 0)}
        change = Change()
        for c, k, places in self.slots(labels):
            for series in dict.fromkeys((s, kind) for s, kind, _ in places):
                exchange_slots(change, c, k, *(places[(*series, i)] for i in pairs[series[1]]))
        self.cross_outputs(change, other)
        for name, moves in extras:
            shape = self.model.tensors[name].shape
            index = torch.arange(shape.numel()).reshape(shape)
            for dim, _ in moves:
                if (
                    shape[dim] in (self.heads * self.size, kv * self.size)
                    and shape[dim] > self.heads
                ):
                    kind = "q" if shape[dim] == self.heads * self.size else "kv"
                    blocks = index.movedim(dim, 0).unflatten(0, (-1, self.size))
                    a, b = pairs[kind]
                    exchange(change, name, blocks[a], blocks[b])
        return change

    def cross_outputs(self, change: Change, other: int) -> None:
        """The first head's and another's."""
        for c in self.outer:
            for part in c.parts:
                exchange(change, c.name, part[0].mT, part[other].mT)

    def check(self) -> Outcome:
        self.model.runs = 0
        try:
            return self.decide()
        except TooManyWays:
            return Outcome("heads", self.names, "untested", TOO_MANY)

    def decide(self) -> Outcome:
        reason = self.cannot()
        if reason:
            return Outcome("heads", self.names, "untested", reason)
        if not next(self.key_values(), None):
            numbers = {c.name: [len(part) for part in c.parts] for c in self.inner}
            return Outcome("heads", self.names, "unsure", f"{self.heads} heads out, in {numbers}")
        found = self.find_move()
        if found is None:
            if self.has_values_alone():
                reason = "values turn head by head; the queries come from elsewhere"
                return Outcome("heads", self.names, "untested", reason)
            return Outcome("heads", self.names, "wrong", "heads cannot be moved")
        kv, is_tiled, labels, extras = found
        how = f"{self.heads} heads, {kv} of keys and values"
        if extras:
            how += ", with " + ", ".join(dict.fromkeys(kind_of(name) for name, _ in extras))
        if not self.model.is_changed(self.crossed(labels, kv, is_tiled, extras)):
            if not self.queries_matter(labels):  # as with a single token, or one score for all
                reason = f"{how}: whose queries are whose changes nothing here"
                return Outcome("heads", self.names, "untested", reason)
            return Outcome("heads", self.names, "wrong", f"{how}: not more than one head")
        if self.has_turn(labels, kv, is_tiled):
            return Outcome("heads", self.names, "right", how)
        if self.has_inner_order(labels, kv):
            return Outcome("heads", self.names, "right", f"{how}; entries reordered, not turned")
        several = next((n for n in (2, 3) if self.has_finer(n)), None)
        if several:
            return Outcome("heads", self.names, "wrong", f"{how}: each is {several} or more")
        return Outcome("heads", self.names, "unsure", f"{how}: a head could be several")

    def queries_matter(self, labels: dict) -> bool:
        """Whether the outputs change when two heads exchange their queries alone."""
        change = Change()
        for c, k, places in self.slots(labels):
            slots = [places.get(("a", "q", head)) for head in (0, 1)]
            if None not in slots:
                exchange(change, c.name, *(c.parts[k][slot] for slot in slots))
        return self.model.is_changed(change)

    def has_values_alone(self) -> bool:
        """Whether these are keys and values of as many heads as there are outputs, whose queries
        other modules make: no head can be moved without them. Each value's entries can be turned,
        and half of one head's exchanged with another's is another output."""
        turns = self.turns()
        for labels in self.all_labels(self.heads):
            if any(kind == "q" for _, _, places in self.slots(labels) for _, kind, _ in places):
                continue
            for series in self.values(labels, self.heads):
                turned = self.turned(series, self.heads, False, turns)
                crossed = self.values_crossed(series)
                if self.model.is_same(turned) and self.model.is_changed(crossed):
                    return True
        return False

    def values_crossed(self, series: list[tuple]) -> Change:
        """Half of the entries of two heads' values exchanged."""
        change = Change()
        for c, k, places, wanted in series:
            exchange_slots(change, c, k, *(places[(*wanted, head)] for head in (0, 1)))
        self.cross_outputs(change, 1)
        return change

    def has_finer(self, factor: int) -> bool:
        """Whether as many times the heads can be moved as well."""
        rows = [part.shape[-2] for c in self.inner for part in c.parts]
        if any(n % factor for n in (*rows, self.size)):
            return False
        finer = copy.copy(self)
        finer.heads, finer.size = self.heads * factor, self.size // factor
        finer.inner = [split(c, factor, -2) for c in self.inner]
        finer.outer = [split(c, factor, -1) for c in self.outer]
        return finer.find_move() is not None

    def check_numbered(self) -> Outcome | None:
        """Where each head has a place of its own (slopes by number): turned and scaled only."""
        self.model.runs = 0
        try:
            return self.decide_numbered()
        except TooManyWays:
            return Outcome("heads", self.names, "untested", TOO_MANY)

    def decide_numbered(self) -> Outcome | None:
        for kv in self.key_values():
            for is_tiled in (False, True) if 1 < kv < self.heads else (False,):
                for labels in self.all_labels(kv):
                    if self.has_turn(labels, kv, is_tiled) and self.has_scales(labels, kv):
                        if self.model.is_changed(self.crossed(labels, kv, is_tiled)):
                            how = f"{self.heads} heads, {kv} of keys and values, each in its place"
                            return Outcome("heads", self.names, "right", how)
        return None


def exchange_slots(change: Change, c: Claim, k: int, a: int, b: int) -> None:
    """Half of the rows of two heads in a tensor, and in its bias."""
    exchange(change, c.name, c.parts[k][a], c.parts[k][b])
    if c.bias_parts:
        exchange(change, c.bias, c.bias_parts[k][a], c.bias_parts[k][b])


def check_heads(model: Model, claims: dict[str, Claim]) -> list[Outcome]:
    several = [c for c in claims.values() if c.role == "attention" and c.heads > 1]
    outer = [c.name for c in several if c.side == -1]
    found, alone = sets(outer, [c.name for c in several if c.side == -2])
    kinds = {}
    for block in found:
        add_single(claims, *block)
        shapes = [claims[n].shape for n in (*block[1], *block[2])]
        kinds.setdefault((kind_of(block[0]), str(shapes)), []).append(block)
    outcomes, numbers = [], {}
    for blocks in kinds.values():
        outcome = Heads(model, claims, blocks[:1]).check()
        if outcome.status == "wrong":
            numbers.setdefault(claims[blocks[0][2][0]].heads, []).append((outcome, blocks))
        else:
            outcomes.append(outcome)
    for failed in numbers.values():  # tables that layers share
        whole = Heads(model, claims, [block for _, blocks in failed for block in blocks])
        together = whole.check() if not whole.cannot() else None
        for outcome, blocks in failed:
            if together and together.status == "right":
                reason = f"{together.reason}; all layers at once"
                outcomes.append(Outcome("heads", outcome.names, "right", reason))
            else:
                numbered = Heads(model, claims, blocks[:1]).check_numbered()
                outcomes.append(numbered or without_rest(model, claims, blocks[0]) or outcome)
    return outcomes + with_wider_outputs(model, claims, [claims[name] for name in alone])


def without_rest(model: Model, claims: dict[str, Claim], block: tuple) -> Outcome | None:
    """Right if the heads can be moved once all else that stands beside them is zero: windows of
    several sizes, as CoaT's heads have, hold each in its place."""
    moved = [claims[name] for name in (*block[1], *block[2])]
    own = {name for c in moved for name in (c.name, c.bias)}
    inside = {id(t) for t in model.model.get_submodule(block[0]).parameters()}  # shared ones, too
    rest = [n for n, t in model.tensors.items() if id(t) in inside and n not in own]
    if not rest:
        return None
    with model.zeroed(rest):
        outcome = Heads(model, claims, [block]).check()
    if outcome.status != "right":
        return None
    beside = ", ".join(dict.fromkeys(kind_of(name) for name in rest))
    return Outcome("heads", outcome.names, "right", f"{outcome.reason}; with {beside} zero")


def add_single(claims: dict[str, Claim], folder: str, inner: list, outer: list) -> None:
    """Beside queries alone: keys and values of one head, which need no layout."""
    heads, size = claims[outer[0]].heads, claims[outer[0]].parts[0].shape[-1]
    if [claims[name].heads for name in inner] != [heads]:
        return
    for c in list(claims.values()):
        if c.role == "attention" and c.heads == 1 and is_below(c.name, folder):
            if c.parts[0].ndim == 2 and c.parts[0].shape[-2] == size:
                several = {k: [x[None] for x in getattr(c, k)] for k in PARTS}
                claims[c.name] = replace(c, **several)
                inner.append(c.name)


def with_wider_outputs(model: Model, claims: dict[str, Claim], alone: list[Claim]) -> list[Outcome]:
    """Heads that go into the first or the last columns of a matrix that takes more than them."""
    outcomes, blocks = [], {}
    for claim in alone:
        blocks.setdefault(parent(parent(claim.name)), []).append(claim)
    kinds = {(kind_of(folder), len(inner)): folder for folder, inner in reversed(blocks.items())}
    for folder in kinds.values():
        inner = blocks[folder]
        names = [c.name for c in inner]
        heads = max(c.heads for c in inner)
        size = min(part.shape[-2] for c in inner for part in c.parts)
        outcome = Outcome("heads", names, "untested", "nothing beside it takes or gives heads")
        for wide in wider(claims, parent(folder), heads * size) if inner[0].side == -2 else ():
            for start in (0, wide.shape[-1] - heads * size):
                part = wide.parts[0].narrow(-1, start, heads * size)
                part = part.unflatten(-1, (heads, size)).movedim(-2, -3)
                cut_off = replace(wide, parts=[part], heads=heads, side=-1)
                block = (folder, names, [wide.name])
                found = Heads(model, {**claims, wide.name: cut_off}, [block]).check()
                if found.status == "right":
                    outcome = found
        outcomes.append(outcome)
    return outcomes


def wider(claims: dict[str, Claim], folder: str, columns: int) -> list[Claim]:
    return [
        c
        for c in claims.values()
        if is_below(c.name, folder)
        and c.heads == 1
        and len(c.shape) == len(c.parts[0].shape) == 2
        and c.shape[-1] > columns
    ]
