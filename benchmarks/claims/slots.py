"""Which rows are heads, how they can lie, and moving them round."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .changes import Change, Claim, Model, chosen_extras, is_below, kind_of

# A slot of a tensor is a head's rows; its label says which series (queries, keys, ...), whether it
# goes with a query head ("q") or with a key and value head ("kv"), and with which.
Label = tuple[str, str, int]


def labelings(n: int, heads: int, kv: int) -> list[list[Label]]:
    """What n slots in a row can be, of so many heads."""
    one = [("a", "q", i) for i in range(heads)]
    two = [("b", "kv", i) for i in range(kv)]
    three = [("c", "kv", i) for i in range(kv)]
    gate = [("d", "q", i) for i in range(heads)]
    each = heads // kv
    groups = [one[i * each : (i + 1) * each] for i in range(kv)]
    per_group = list(zip(groups, two, three, strict=True))
    found = []
    if n == heads:
        found.append(one)
    if n == kv != heads:
        found.append(two)
    if n == 2 * kv:
        found += [two + three, [x for pair in zip(two, three, strict=True) for x in pair]]
    if n == heads + 2 * kv:
        found += [one + two + three, [x for q, k, v in per_group for x in (*q, k, v)]]
        found.append([x for q, k, v in per_group for x in (k, *q, v)])
    if n == 2 * heads:
        found += [one + gate, [x for pair in zip(one, gate, strict=True) for x in pair]]
    if n == 2 * heads + 2 * kv:
        gates = [gate[i * each : (i + 1) * each] for i in range(kv)]
        found.append(
            [x for (q, k, v), g in zip(per_group, gates, strict=True) for x in (k, v, *q, *g)]
        )
        pairs = [x for pair in zip(one, gate, strict=True) for x in pair]
        found += [one + gate + two + three, pairs + two + three]
    return found


class Slots:
    """The attention below some folders, with as many heads each."""

    def __init__(self, model: Model, claims: dict[str, Claim], blocks: list[tuple]):
        self.model = model
        self.folders = [folder for folder, _, _ in blocks]
        self.inner = [claims[n] for _, inner, _ in blocks for n in inner]
        self.outer = [claims[n] for _, _, outer in blocks for n in outer]
        self.names = [c.name for c in (*self.inner, *self.outer)]
        self.heads = self.outer[0].heads
        self.size = self.outer[0].parts[0].shape[-1]
        self.is_joint = len(blocks) > 1

    def key_values(self) -> Iterator[int]:
        for kv in range(self.heads, 0, -1):
            if self.heads % kv == 0 and all(
                labelings(len(part), self.heads, kv) for c in self.inner for part in c.parts
            ):
                yield kv

    def all_labels(self, kv: int) -> Iterator[dict]:
        """Ways to label each tensor's parts; alike in all layers."""
        kinds = {}
        for c in self.inner:
            for part in c.parts:
                ways = labelings(len(part), self.heads, kv)
                kinds[kind_of(c.name), len(part)] = ways
        for chosen in itertools.product(*kinds.values()):
            yield dict(zip(kinds, chosen, strict=True))

    def slots(self, labels: dict) -> Iterator[tuple[Claim, int, dict[Label, int]]]:
        """Of each part of the inner tensors: which slot has which label."""
        for c in self.inner:
            for k, part in enumerate(c.parts):
                yield c, k, {x: i for i, x in enumerate(labels[kind_of(c.name), len(part)])}

    # Moves

    def extras(self, orders: dict[str, Tensor], labels: dict) -> dict[str, list]:
        """What has as many entries as there are heads, or rows of heads, or of queries, keys and
        values together; and matrices with some rows for each head."""
        by_size = self.orders_of_rows(orders, labels)
        for kind in ("kv", "q"):
            n = len(orders[kind])
            by_size |= {n * self.size: in_blocks(orders[kind], self.size), n: orders[kind]}
        return self.beside(by_size, orders["q"])

    def beside(self, by_size: dict[int, Tensor], blocks: Tensor | None = None) -> dict[str, list]:
        """What else is below the folders (and which tables anywhere, if all layers move), by kind:
        names, and the order of each dimension of a size that has one."""
        own = {c.name for c in (*self.inner, *self.outer)}
        own |= {c.bias for c in self.inner}
        found = {}
        for name, t in self.model.tensors.items():
            here = any(is_below(name, folder) for folder in self.folders)
            table = self.is_joint and t.ndim > 1 and self.heads in t.shape
            if name in own or not (here or table):
                continue
            # Of more than a matrix the first dimension only: a kernel has its own.
            dims = [d for d, size in enumerate(t.shape) if size > 1][: 2 if t.ndim == 2 else 1]
            moves = [(d, by_size[t.shape[d]]) for d in dims if t.shape[d] in by_size]
            # From heads, or from their entries, to heads.
            is_both = t.ndim == 2 and t.shape[0] <= self.heads and len(moves) == 2
            if not moves and t.ndim > 1 and blocks is not None and t.shape[0] % self.heads == 0:
                moves = [(0, self.of_each_head(t.shape[0], blocks))]
            if moves:
                kind = found.setdefault(kind_of(name), [])
                kind.append((name, moves if is_both else moves[:1]))
        return found

    def of_each_head(self, rows: int, order: Tensor) -> Tensor:
        """The order of rows of which some belong to each head: several times all heads one after
        the other, or the rows of a head together."""
        all_heads = self.heads * self.size
        if rows % all_heads:
            return in_blocks(order, rows // self.heads)
        series = torch.arange(rows).reshape(-1, all_heads)
        return series[:, in_blocks(order, self.size)].flatten()

    def orders_of_rows(self, orders: dict[str, Tensor], labels: dict) -> dict[int, Tensor]:
        """Of the rows of each inner tensor, by their number."""
        found = {}
        for c in self.inner:
            if c.row_parts:
                order = torch.arange(sum(part.numel() for part in c.row_parts))
                for other, k, places in self.slots(labels):
                    for (series, kind, i), slot in places.items() if other is c else ():
                        source = places[series, kind, int(orders[kind][i])]
                        order[c.row_parts[k][slot].flatten()] = c.row_parts[k][source].flatten()
                found[len(order)] = order
        return found

    def moved(self, labels: dict, orders: dict[str, Tensor], extras: list) -> Change:
        """orders: for each kind of slot, whose place it takes."""
        change = Change()
        for c, k, places in self.slots(labels):
            for (series, kind, i), slot in places.items():
                source = places[series, kind, int(orders[kind][i])]
                change.move(c.name, c.parts[k][slot], c.parts[k][source])
                if c.bias_parts:
                    change.move(c.bias, c.bias_parts[k][slot], c.bias_parts[k][source])
        for c in self.outer:
            for part in c.parts:
                for h, source in enumerate(orders["q"]):
                    change.move(c.name, part[h], part[source])
        add_extras(change, self.model, extras)
        return change

    def orders(self, kv: int, is_tiled: bool) -> dict[str, Tensor]:
        """Each group takes the place of the one before, its queries in reverse."""
        each = self.heads // kv
        grid = torch.arange(self.heads)
        grid = grid.reshape(each, kv).mT if is_tiled else grid.reshape(kv, each)
        order = torch.empty(self.heads, dtype=torch.long)
        order[grid] = grid.roll(-1, 0).flip(1)
        return {"q": order, "kv": torch.arange(kv).roll(-1)}

    def find_move(self) -> tuple | None:
        """How queries, keys and values lie so that moving the heads changes nothing."""
        for kv in self.key_values():
            for is_tiled in (False, True) if 1 < kv < self.heads else (False,):
                orders = self.orders(kv, is_tiled)
                for labels in self.all_labels(kv):
                    for extras in chosen_extras(self.extras(orders, labels)):
                        if self.model.is_same(self.moved(labels, orders, extras)):
                            return kv, is_tiled, labels, extras
        return None


def split(claim: Claim, factor: int, side: int) -> Claim:
    """Each head as several."""

    def several(part: Tensor) -> Tensor:
        pieces = part.unflatten(side, (factor, -1))
        return (pieces if side == -2 else pieces.movedim(-2, -3)).flatten(0, 1)

    changed = {"parts": [several(part) for part in claim.parts]}
    if side == -2:
        changed["row_parts"] = rows = [several(part) for part in claim.row_parts]
        changed["bias_parts"] = rows if claim.bias_parts else []
    return replace(claim, heads=claim.heads * factor, **changed)


def in_blocks(order: Tensor, size: int) -> Tensor:
    """The order of so many entries for each one ordered."""
    return torch.arange(len(order) * size).reshape(-1, size)[order].flatten()


def exchange(change: Change, name: str, a: Tensor, b: Tensor) -> None:
    """The first half of the rows of two blocks."""
    half = (len(a) + 1) // 2
    if not torch.equal(a, b):
        change.move(name, a[:half], b[:half])
        change.move(name, b[:half], a[:half])


def add_extras(change: Change, model: Model, extras: list) -> None:
    for name, moves in extras:
        index = torch.arange(model.tensors[name].numel()).reshape(model.tensors[name].shape)
        source = index
        for dim, order in moves:
            source = source.index_select(dim, order)
        change.move(name, index, source)
