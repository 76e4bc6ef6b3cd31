"""What leaves a head as it is but turns, scales or reorders its entries."""

import itertools

import torch
from torch import Tensor

from .changes import Change, Turn, chosen_extras, kind_of
from .slots import Slots, add_extras


class Turns(Slots):
    """Of the heads that Slots has found."""

    def values(self, labels: dict, kv: int) -> list[list[tuple]]:
        """Series that could be the values, one for each output."""
        found = []
        for c, k, places in self.slots(labels):
            if c.parts[k].shape[-2] == self.size:
                series = dict.fromkeys((s, kind) for s, kind, _ in places)
                found += [(c, k, places, s) for s in series]
        by_kind = {}  # the same series in all layers
        for c, k, places, s in found:
            by_kind.setdefault((kind_of(c.name), k, s), []).append((c, k, places, s))
        number = len({kind_of(c.name) for c in self.outer})
        return [sum(x, []) for x in itertools.combinations(by_kind.values(), number)]

    def turned(self, series: list[tuple], kv: int, is_tiled: bool, turns: Tensor) -> Turn:
        """By one turn for each group, or for each head if the values are as many."""
        turn = Turn()
        of_groups = any(kind == "kv" for _, _, _, (_, kind) in series)
        for c, k, places, wanted in series:
            for (s, kind, i), slot in places.items():
                if (s, kind) == wanted:
                    turn.rows(c.name, c.parts[k][slot], turns[i])
                    if c.bias_parts:
                        turn.rows(c.bias, c.bias_parts[k][slot], turns[i])
        for c in self.outer:
            for part in c.parts:
                for h in range(self.heads):
                    group = h % kv if is_tiled else h * kv // self.heads
                    turn.columns(c.name, part[h], turns[group if of_groups else h])
        return turn

    def has_turn(self, labels: dict, kv: int, is_tiled: bool) -> bool:
        """Whether some series are values: their entries can be rotated."""
        turns = self.turns()
        return any(
            self.model.is_same(self.turned(series, kv, is_tiled, turns))
            for series in self.values(labels, kv)
        )

    def turns(self) -> Tensor:
        """A rotation for each head."""
        generator = torch.Generator().manual_seed(2)
        shape = (self.heads, self.size, self.size)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(noise).Q

    def has_inner_order(self, labels: dict, kv: int) -> bool:
        """Each head's entries in another order: of values, and of what gates or scales them."""
        order = torch.arange(self.size).roll(1)
        series = dict.fromkeys(
            (kind_of(c.name), k, s)
            for c, k, places in self.slots(labels)
            if c.parts[k].shape[-2] == self.size
            for s, _, _ in places
        )
        for number in range(1, min(3, len(series)) + 1):
            for chosen in itertools.combinations(series, number):
                for extra in chosen_extras(self.inner_extras(labels, kv, set(chosen), order)):
                    if self.model.is_same(self.reordered(labels, set(chosen), order, extra)):
                        return True
        return False

    def inner_extras(self, labels: dict, kv: int, series: set, order: Tensor) -> dict[str, list]:
        """What has as many entries as a head, all heads, or queries, keys and values together."""
        by_size = {self.size: order}
        width = self.heads * self.size
        for several in (2, 3, 4):  # series one after the other, of which the last is the values'
            rows = torch.arange(several * width)
            rows[-width:] = rows[-width:].reshape(-1, self.size)[:, order].flatten()
            by_size[len(rows)] = rows
        for c in self.inner:
            rows = torch.arange(sum(part.numel() for part in c.row_parts))
            for other, k, places in self.slots(labels):
                for (s, _, _), slot in places.items() if other is c and c.row_parts else ():
                    if (kind_of(c.name), k, s) in series:
                        slot_rows = c.row_parts[k][slot].flatten()
                        rows[slot_rows] = slot_rows[order]
            by_size[len(rows)] = rows
        for n in (kv, self.heads):
            by_size[n * self.size] = torch.arange(n * self.size).reshape(n, -1)[:, order].flatten()
        return self.beside(by_size)

    def reordered(self, labels: dict, series: set, order: Tensor, extras: list) -> Change:
        change = Change()
        for c, k, places in self.slots(labels):
            for (s, _, _), slot in places.items():
                if (kind_of(c.name), k, s) in series:
                    change.move(c.name, c.parts[k][slot], c.parts[k][slot][order])
                    if c.bias_parts:
                        bias = c.bias_parts[k][slot]
                        change.move(c.bias, bias, bias[order])
        for c in self.outer:
            for part in c.parts:
                change.move(c.name, part, part[..., order])
        add_extras(change, self.model, extras)
        return change

    def has_scales(self, labels: dict, kv: int) -> bool:
        """Queries longer and keys shorter, by another factor in each group."""
        series = dict.fromkeys(
            (kind_of(c.name), k, s, kind)
            for c, k, places in self.slots(labels)
            for s, kind, _ in places
        )
        for queries, keys in itertools.permutations(series, 2):
            if queries[3] != "q" and kv < self.heads:
                continue
            turn = Turn()
            for c, k, places in self.slots(labels):
                for (s, kind, i), slot in places.items():
                    for wanted, sign in ((queries, 1), (keys, -1)):
                        if (kind_of(c.name), k, s, kind) != wanted:
                            continue
                        group = i * kv // self.heads if kind == "q" else i
                        rows = c.parts[k].shape[-2]
                        scale = torch.eye(rows, dtype=torch.float64) * (group + 1.5) ** sign
                        turn.rows(c.name, c.parts[k][slot], scale)
                        if c.bias_parts:
                            turn.rows(c.bias, c.bias_parts[k][slot], scale)
            if self.model.is_same(turn):
                return True
        return False
