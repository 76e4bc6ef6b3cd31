"""Neurons of MLPs and of experts, and experts: in another order, and cut across."""

import itertools

import torch

from .changes import (
    Change,
    Claim,
    Model,
    Outcome,
    Relabel,
    TooManyWays,
    chosen_extras,
    is_below,
    kind_of,
    sets,
)
from .slots import add_extras


class Units:
    """One MLP, or a stack of experts [E, ...] with neurons of their own each."""

    def __init__(self, model: Model, claims: dict[str, Claim], folder: str, inner, outer):
        self.model, self.folder = model, folder
        self.inner = [claims[n] for n in inner]
        self.outer = [claims[n] for n in outer]
        self.names = [*inner, *outer]
        self.units = self.outer[0].parts[0].shape[-1]
        self.batch = self.outer[0].shape[:-2] if len(self.outer[0].shape) == 3 else ()

    def sizes(self) -> str | None:
        """What rows that differ from the columns would need."""
        rows = {c.name: [part.shape[-2] for part in c.parts] for c in self.inner}
        columns = {c.name: [part.shape[-1] for part in c.parts] for c in self.outer}
        found = {n for sizes in (*rows.values(), *columns.values()) for n in sizes}
        return None if len(found) == 1 else f"rows {rows}, columns {columns}"

    def orders(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(4)
        number = self.batch[0] if self.batch else 1
        return torch.stack([torch.randperm(self.units, generator=generator) for _ in range(number)])

    def beside(self) -> dict[str, torch.Tensor]:
        """What is below the folder besides."""
        own = {c.name for c in (*self.inner, *self.outer)}
        own |= {c.bias for c in (*self.inner, *self.outer)}
        tensors = self.model.tensors.items()
        return {n: t for n, t in tensors if n not in own and is_below(n, self.folder)}

    def ways(self):
        """Orders of the neurons, and what moves along: all of them; and those that something acts
        on apart from the others (kernels of the first or the last of them)."""
        orders = self.orders()
        if self.batch:
            yield orders, []
            return
        for extras in chosen_extras(self.extras({self.units: orders[0]})):
            yield orders, extras
        sizes = {t.shape[0] for t in self.beside().values() if t.ndim > 1}
        for some in sorted(n for n in sizes if 1 < n < self.units):
            rest = orders[0][orders[0] < self.units - some]
            last = orders[0][orders[0] >= self.units - some]
            for extras in chosen_extras(self.extras({some: last - len(rest)})):
                yield torch.cat([rest, last])[None], extras
            first, rest = orders[0][orders[0] < some], orders[0][orders[0] >= some]
            for extras in chosen_extras(self.extras({some: first})):
                yield torch.cat([first, rest])[None], extras

    def extras(self, by_size: dict[int, torch.Tensor]) -> dict[str, list]:
        found = {}
        for name, t in self.beside().items():
            dims = [d for d, size in enumerate(t.shape) if size in by_size]
            if dims:
                move = (name, [(dims[0], by_size[t.shape[dims[0]]])])
                found.setdefault(kind_of(name), []).append(move)
        return found

    def moved(self, orders, extras, with_outer=True) -> Change:
        change = Change()
        for c in self.inner:
            for part in c.parts:
                change.move(c.name, part, taken(part, orders, -2))
            for part in c.bias_parts:
                change.move(c.bias, part, taken(part, orders, -2))
        for c in self.outer if with_outer else ():
            for part in c.parts:
                change.move(c.name, part, taken(part, orders, -1))
        add_extras(change, self.model, extras)
        return change

    def crossed(self) -> Change | None:
        """Half of the rows of the first matrix exchanged with those of the second."""
        matrices = []
        for c in self.inner:
            for part in c.parts:
                if part.ndim > (3 if self.batch else 2):  # heads of rows
                    matrices += [(c.name, m) for m in part.unbind(-3)]
                else:
                    matrices.append((c.name, part))
        if len(matrices) < 2:
            return None
        (a, first), (b, second) = matrices[:2]
        half = self.units // 2
        change = Change()
        change.move(a, first[..., :half, :], second[..., :half, :], of=b)
        change.move(b, second[..., :half, :], first[..., :half, :], of=a)
        return change

    def across_experts(self) -> Change:
        """Half of each expert's neurons go to the next expert."""
        half = self.units // 2
        change = Change()
        for c, dim in [(c, -2) for c in self.inner] + [(c, -1) for c in self.outer]:
            for part in c.parts:
                some = part.narrow(dim, 0, half)
                change.move(c.name, some, some.roll(1, 0))
        return change

    def check(self) -> Outcome:
        self.model.runs = 0
        try:
            return self.decide()
        except TooManyWays:
            reason = "there are more ways to move it than are tried"
            return Outcome("neurons", self.names, "untested", reason)

    def decide(self) -> Outcome:
        names = self.names
        if not self.model.depends_on(names):
            return Outcome("neurons", names, "untested", "the outputs hardly depend on one of them")
        if any(c.shape[:-2] != self.batch for c in self.inner if len(c.shape) == 3):
            return Outcome("neurons", names, "untested", "stacks of different lengths")
        if reason := self.sizes():
            return Outcome("neurons", names, "unsure", reason)
        for orders, extras in self.ways():
            if self.model.is_same(self.moved(orders, extras)):
                break
        else:
            return Outcome("neurons", names, "wrong", f"{self.units} neurons cannot be moved")
        how = f"{self.units} neurons"
        if extras:
            how += ", with " + ", ".join(kind_of(name) for name, _ in extras)
        if not self.model.is_changed(self.moved(orders, extras, with_outer=False)):
            return Outcome("neurons", names, "wrong", f"{how}: the rows are no neurons")
        crossed = self.crossed()
        if crossed and not self.model.is_changed(crossed):
            return Outcome("neurons", names, "wrong", f"{how}: gate and up are one")
        if self.batch and not self.model.is_changed(self.across_experts()):
            return Outcome("neurons", names, "wrong", f"{how}: the experts are one")
        return Outcome("neurons", names, "right", how)


def taken(part, orders, dim):
    """The positions of a part [(E,) ..., rows, columns] in the order of each expert."""
    index = orders if part.ndim > 2 and len(orders) == len(part) > 1 else orders[0]
    if index.ndim == 1:
        return part.index_select(dim, index)
    shape = [1] * part.ndim
    shape[0], shape[dim] = index.shape
    return torch.take_along_dim(part, index.reshape(shape), dim)


def check_neurons(model: Model, claims: dict[str, Claim]) -> list[Outcome]:
    outcomes, seen = [], set()
    for first, second in (("mlp_in", "mlp_out"), ("expert_in", "expert_out")):
        outer = [c.name for c in claims.values() if c.role == second]
        found, alone = sets(outer, [c.name for c in claims.values() if c.role == first])
        for folder, inner, outer in found:
            key = (kind_of(folder), str([claims[n].shape for n in (*inner, *outer)]))
            if key not in seen:
                seen.add(key)
                outcomes.append(Units(model, claims, folder, inner, outer).check())
        reason = f"no {first} and {second} beside each other"
        outcomes += [Outcome("neurons", [name], "untested", reason) for name in alone]
    return outcomes


# Experts


def check_experts(model: Model, claims: dict[str, Claim]) -> list[Outcome]:
    routers = [c.name for c in claims.values() if c.role == "router"]
    experts = [c.name for c in claims.values() if c.role in ("expert_in", "expert_out")]
    found, alone = sets(routers, experts)
    outcomes, seen = [], set()
    for folder, stacks, routers in found:
        key = (kind_of(folder), str([claims[n].shape for n in (*stacks, *routers)]))
        if key not in seen:
            seen.add(key)
            outcomes.append(of_one_router(model, claims, folder, stacks, routers))
    lone = [n for n in alone if claims[n].role == "router"]
    reason = "no experts beside it"
    return outcomes + [Outcome("experts", [name], "untested", reason) for name in lone]


def names_experts(t: torch.Tensor, number: int) -> bool:
    """Tables of which expert takes which token."""
    is_whole = not t.is_floating_point() and t.dtype != torch.bool and t.numel() > number
    return is_whole and 0 <= t.min() and t.max() < number


def of_one_router(model, claims, folder, stacks, routers) -> Outcome:
    names = [*routers, *stacks]
    if len(routers) > 1:
        return Outcome("experts", names, "untested", "several routers beside each other")
    if not stacks:
        return Outcome("experts", names, "untested", "no experts beside it")
    router = claims[routers[0]]
    number = router.parts[0].shape[-2]
    order = torch.arange(number - 1, -1, -1)  # keeps groups of experts together
    stacks_moved = Change()
    own = {router.name, router.bias}
    singles = {}
    for name in stacks:
        c = claims[name]
        own |= {name, c.bias}
        if len(c.shape) == 3 and c.shape[0] == number:
            add_extras(stacks_moved, model, [(name, [(0, order)])])
            if c.bias and model.tensors[c.bias].shape[0] == number:
                add_extras(stacks_moved, model, [(c.bias, [(0, order)])])
        elif len(c.shape) == 3:
            return Outcome("experts", names, "untested", f"{number} rows, {c.shape[0]} experts")
        else:
            head, *rest = name.removeprefix(folder + "." if folder else "").split(".")
            at = next((i for i, part in enumerate(rest) if part.isdigit()), None)
            if at is None:
                return Outcome("experts", names, "untested", f"{name} is in no list")
            rest[at], place = "{}", int(rest[at])
            pattern = ".".join(filter(None, (folder, head, *rest)))
            for key in (pattern, pattern.removesuffix("weight") + "bias"):
                if key.format(place) in model.tensors:
                    own.add(key.format(place))
                    singles.setdefault(key, set()).add(place)
    for pattern, places in singles.items():
        if places != set(range(number)):
            return Outcome("experts", names, "untested", f"{number} rows, experts {sorted(places)}")
        for i in range(number):
            index = torch.arange(model.tensors[pattern.format(i)].numel())
            source = pattern.format(int(order[i]))
            stacks_moved.move(pattern.format(i), index, index, of=source)
    model.runs = 0
    if not model.depends_on(stacks):
        return Outcome("experts", names, "untested", "the outputs hardly depend on one of them")
    rows = Change()
    for part in router.parts:
        rows.move(router.name, part, part[..., order, :])
    if router.bias:
        add_extras(rows, model, [(router.bias, [(0, order)])])
    beside = {}
    for name, t in model.tensors.items():
        if name not in own and is_below(name, folder) and t.ndim and number in t.shape:
            dim = list(t.shape).index(number)
            beside.setdefault(kind_of(name), []).append((name, [(dim, order)]))
    whole = [
        n for n, t in model.tensors.items() if is_below(n, folder) and names_experts(t, number)
    ]
    for extras, labels in itertools.product(chosen_extras(beside), (whole, []) if whole else ([],)):
        more = Change()
        add_extras(more, model, extras)
        if model.is_same(stacks_moved, rows, more, Relabel(labels, order)):
            break
    else:
        return Outcome("experts", names, "wrong", f"{number} experts cannot be moved")
    if not model.is_changed(stacks_moved):
        return Outcome("experts", names, "wrong", f"{number} experts: the router does not choose")
    return Outcome("experts", names, "right", f"{number} experts")
