"""What a library says itself about the parts of its models: transformers' and torch.nn's words."""

import re

from torch import nn

from erlangen import _C

from . import modules, numbers
from .findings import DECLARED, RECOGNISED, Finding
from .modules import TRANSPOSE, Place, heads
from .patterns import ROUTER_CLASSES

# Losses and caps that see a shift which all vocabulary logits, or all experts' logits, share.
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_HEAD_Z_LOSSES = ("z_loss_coefficient",)
_ROUTER_Z_LOSSES = ("router_z_loss_coef", "z_loss_coef", "router_z_loss_coefficient")
UNCENTERED = {"center": False}
# Words in code for what sees a shift that all of a router's logits share.
_SEE_SHIFTS = ("sigmoid", "tanh", "relu", "softplus", "normalize", "logsumexp")


def _states(config, names: tuple[str, ...]) -> bool:
    things = [config, *numbers.parts(config)]
    return any(numbers.flag(thing, name) for thing in things for name in names)


def head_options(config) -> dict:
    """No centering where the loss sees a shift that all vocabulary logits share."""
    return dict(UNCENTERED) if _states(config, _SOFT_CAPS + _HEAD_Z_LOSSES) else {}


def router_options(place: Place) -> dict:
    """No centering where a loss sees the shared shift, and but where the router's code, or that
    around it, takes a softmax: experts that are scored one by one share nothing."""
    scoring = numbers.flag(place.config, "scoring_func", "moe_router_score_function")
    if _states(place.config, _ROUTER_Z_LOSSES) or scoring == "sigmoid":
        return dict(UNCENTERED)
    takes_softmax = False
    around = [place, place.owner]
    if place.owner is not None and re.search(
        ROUTER_CLASSES, modules.class_name(place.owner.module)
    ):
        around.append(place.owner.owner)
    for p in around:
        if p is None or type(p.module) is nn.Linear:
            continue
        # What a block of experts does with sigmoids may be its shared experts' gate; what methods
        # about routing do is not.
        own = p is place or re.search(ROUTER_CLASSES, modules.class_name(p.module)) is not None
        if modules.calls(p.module, *_SEE_SHIFTS, methods=lambda m, own=own: own or "rout" in m):
            return dict(UNCENTERED)
        takes_softmax = takes_softmax or modules.calls(p.module, "softmax")
        takes_softmax = takes_softmax or any(
            isinstance(child, nn.Softmax) and child.dim not in (None, 0)  # over the tokens
            for child in p.module._modules.values()
        )
    return {} if takes_softmax else dict(UNCENTERED)


# Tables and heads


def token_table(places: list[Place]) -> Place | None:
    """The table of tokens: what get_input_embeddings() returns, else the largest table."""
    tables = [p for p in places if modules.is_embedding(p.module)]
    by_module = {id(p.module): p for p in tables}
    for place in places:
        table = _ask(place.module, "get_input_embeddings")
        if id(table) in by_module:
            return by_module[id(table)]
    return max(tables, key=lambda p: _elements(p.module), default=None)


def _elements(table: nn.Module) -> int:
    weight = modules.weight_of(table)
    return 0 if weight is None else weight.numel()


def _ask(module: nn.Module, method: str):
    if not hasattr(type(module), method):  # wrappers pass attributes on; what they wrap is asked
        return None
    try:
        return getattr(module, method)()
    except Exception:  # no such part, or a model that never had one
        return None


def output_embeddings(places: list[Place]) -> dict[int, Finding]:
    """The linear maps that get_output_embeddings() returns, by the module's id."""
    found = {}
    for place in places:
        head = _ask(place.module, "get_output_embeddings")
        if head is None or not modules.is_linear(head):
            continue
        if not _is_of_vocabulary(head, place):
            continue
        options = head_options(place.config)
        storage = modules.storage(head)
        finding = Finding("lm_head", DECLARED, "get_output_embeddings()", storage, options)
        users = _users_of(head, places)  # trainable copies of it stand there too
        for p in places:
            is_copy = bool(p.users) and p.users[0] in users and modules.is_linear(p.module)
            if p.module is head or is_copy:
                found[id(p.module)] = finding
    return found


def _users_of(module: nn.Module, places: list[Place]) -> list:
    return next((p.users for p in places if p.module is module), [])


def _is_of_vocabulary(head: nn.Module, place: Place) -> bool:
    """Whether the map's rows are a vocabulary's: a number that the config calls so, or the rows of
    the table of tokens, padded or not."""
    rows = modules.logical_shape(head)[:1]
    sizes = {numbers.read(place.config, name) for name in numbers.VOCABULARIES}
    for part in numbers.parts(place.config):
        sizes |= {numbers.read(part, name) for name in numbers.VOCABULARIES}
    table = _ask(place.module, "get_input_embeddings")
    if table is not None and modules.is_embedding(table):
        sizes.add(table.num_embeddings)
    return any(_C.is_padded(row, size) for row in rows for size in sizes if size is not None)


# Experts


def experts(place: Place) -> dict[str, Finding]:
    """The stacks of a module whose class says how it stores them, by their names."""
    module = place.module
    flags = [getattr(module, f"is_{name}", None) for name in ("transposed", "concatenated")]
    has_gate = getattr(module, "has_gate", None)
    if not all(isinstance(flag, bool) for flag in (*flags, has_gate)):
        return {}
    is_transposed, is_concatenated = flags
    first = "gate_up_proj" if has_gate else "up_proj"
    held = {name: module._parameters.get(name) for name in (first, "down_proj")}
    stacks = {name: p for name, p in held.items() if p is not None and p.ndim == 3}
    if len(stacks) != len(held):
        return {}
    entering, leaving = (tuple(p.shape) for p in stacks.values())
    if is_transposed:  # as [E, out, in]
        entering, leaving = (s[:1] + s[:0:-1] for s in (entering, leaving))
    if entering[1] != (2 if has_gate else 1) * leaving[2]:
        return {}
    storage = [TRANSPOSE] if is_transposed else []
    layout = []
    if has_gate:  # a matrix for all gates, one for all ups
        layout = heads(2, -2)
        if not is_concatenated:  # a row is a unit, its halves are the gate's and the up's
            layout = [{"pairs": "interleaved", "dim": -2}, *heads(2, -1)]
    why = "the experts' own is_transposed, is_concatenated, has_gate"
    return {
        first: Finding("expert_in", DECLARED, why, storage + layout),
        "down_proj": Finding("expert_out", DECLARED, why, storage),
    }


# What the model records


def recorded(places: list[Place]) -> dict[str, set[type]]:
    """The classes whose outputs the library records: as "router_logits", as "attentions". A class
    of torch's is recorded by its name in the model, which tells nothing of others."""
    found: dict[str, set[type]] = {"router_logits": set(), "attentions": set()}
    for place in places:
        outputs = getattr(type(place.module), "_can_record_outputs", None)
        if not isinstance(outputs, dict):
            continue
        for what, kinds in found.items():
            entries = outputs.get(what, ())
            for entry in entries if isinstance(entries, (list, tuple)) else (entries,):
                kind = getattr(entry, "target_class", entry)
                if isinstance(kind, type) and not kind.__module__.startswith("torch."):
                    kinds.add(kind)
    return found


def routers(places: list[Place], kinds: set[type]) -> dict[int, Finding]:
    """Maps onto the experts' logits, by the parameter's id."""
    found = {}
    children: dict[int, list[Place]] = {}
    for place in places:
        for user, _ in place.users:
            children.setdefault(id(user), []).append(place)
    for place in places:
        name = modules.class_name(place.module)
        is_declared = any(isinstance(place.module, kind) for kind in kinds)
        if not is_declared and not re.search(ROUTER_CLASSES, name):
            continue
        counts = numbers.experts(place)
        # Some name a block around it: then the map that has as many rows.
        for p in (place, *children.get(id(place), ())):
            weight = modules.weight_of(p.module)
            if weight is None or p is place and type(p.module) is nn.Linear:
                continue
            is_map = modules.is_linear(p.module)
            if p is not place and not is_map:
                continue  # Doge's experts are tables with as many rows
            shape = modules.logical_shape(p.module) if is_map else tuple(weight.shape)
            if len(shape) != 2 or shape[0] not in counts or shape[0] < 2:
                continue
            grade = DECLARED if is_declared else RECOGNISED
            storage = modules.storage(p.module)
            why = f"{shape[0]} rows of {name}"
            found[id(weight)] = Finding("router", grade, why, storage, router_options(p))
    return found
