"""From what is found to one decision a parameter: the strongest evidence, shared tensors, heads."""

import re
from collections.abc import Iterable
from dataclasses import replace

from erlangen import _C

from . import declarations, layers, matching, modules, numbers, tensors
from .declarations import UNCENTERED
from .findings import ASSUMED, GRADES, RECOGNISED, Finding, assumed
from .modules import TRANSPOSE, Place
from .patterns import (
    ATTENTION_CLASSES,
    HEADS,
    HEADS_BESIDE_TOKENS,
    ROUTER_CLASSES,
    TOKEN_TABLES,
)

Uses = list[tuple[Place, Finding]]


def decide(places: list[Place]) -> dict[int, Finding]:
    """One finding for each parameter, keyed by its id."""
    findings = _collect(places)
    table = declarations.token_table(places)
    decisions = {key: _merge(uses) for key, uses in findings.items()}
    decisions |= _declared_ties(places, findings, decisions)
    decisions |= _heads_by_table(places, findings, decisions, table)
    return {
        key: replace(finding, storage=_storage(findings[key][0][0], key, finding))
        for key, finding in decisions.items()
    }


def _storage(place: Place, key: int, finding: Finding) -> list:
    weight = modules.weight_of(place.module) if modules.has_one_weight(place.module) else None
    if weight is not None and id(weight) == key:
        return modules.storage(place.module)
    return [TRANSPOSE] if finding.layout[:1] == [TRANSPOSE] else []


def _collect(places: list[Place]) -> dict[int, Uses]:
    """Every finding about every parameter, keyed by the parameter's id: one for each use."""
    of_maps = matching.recognise(places)
    recorded = declarations.recorded(places)
    of_maps |= declarations.output_embeddings(places)
    of_tensors = tensors.recognise(places)
    of_tensors |= declarations.routers(places, recorded["router_logits"])
    in_attention = _inside(places, recorded["attentions"], ATTENTION_CLASSES)
    in_router = _inside(places, recorded["router_logits"], ROUTER_CLASSES)

    findings: dict[int, Uses] = {}
    for place in places:
        if modules.is_part_of_weight(place):
            continue
        declared = declarations.experts(place)
        stacks = {id(place.module._parameters[name]): f for name, f in declared.items()}
        of_map = of_maps.get(id(place.module))
        if of_map is not None and of_map.why == _C.CHAIN and id(place.module) in in_router:
            of_map = None  # its last map may be the one onto the experts
        weight = modules.weight_of(place.module) if of_map else None
        for parameter, by_type in layers.judge(place):
            said = [stacks.get(id(parameter)), of_tensors.get(id(parameter)), by_type]
            if parameter is weight:
                said.insert(2, of_map)
            found = _best(finding for finding in said if finding is not None)
            if by_type.role == "lora":
                found = by_type
            elif found is by_type and by_type.grade == ASSUMED and by_type.role == "dense":
                found = _by_surroundings(place, by_type, in_attention)
            findings.setdefault(id(parameter), []).append((place, found))
    return findings


def _best(findings: Iterable[Finding]) -> Finding:
    """The one that can be relied on most; the first of equals."""
    return min(findings, key=lambda finding: GRADES.index(finding.grade))


def _by_surroundings(place: Place, by_type: Finding, in_attention: dict) -> Finding:
    """What the modules around a map tell of it, if its shape agrees."""
    shape = modules.logical_shape(place.module)
    attention = in_attention.get(id(place.module))
    if attention is not None:
        if _obeys_heads(shape, attention, place):
            why = f"a map inside {modules.class_name(attention.module)}"
            return assumed("attention", why, by_type.layout)
    if isinstance(place.module, modules.CONVOLUTIONS) and _precedes_norm(place, shape):
        return Finding("dense", RECOGNISED, "a convolution with its norm", by_type.layout)
    return by_type


def _obeys_heads(shape: tuple[int, ...], attention: Place, place: Place) -> bool:
    """Whether a map leads from the model's width to several features a head, or back."""
    known = numbers.sources([attention, place], place.config)
    counts = {sizes["heads"] for sizes in known if "heads" in sizes}
    widths = numbers.widths(place.config) | numbers.widths(attention.module)
    if len(shape) != 2:
        return False
    return any(
        width in widths and size % count == 0 and size > count
        for size, width in (shape, shape[::-1])
        for count in counts
    )


def _precedes_norm(place: Place, shape: tuple[int, ...]) -> bool:
    """Whether a norm over the outputs of a convolution is defined right after it."""
    for user, _ in place.users:
        siblings = [child for child in user.module._modules.values() if child is not None]
        for sibling, following in zip(siblings, siblings[1:], strict=False):
            if sibling is place.module and "Norm" in modules.class_name(following):
                held = (*following._parameters.values(), *following._buffers.values())
                if any(t is not None and t.ndim and t.shape[0] == shape[0] for t in held):
                    return True
    return False


def _inside(places: list[Place], kinds: Iterable[type], pattern: str) -> dict[int, Place]:
    """What stands in modules of these classes, or of one that is called so, by id, and the place of
    that module."""
    found: dict[int, Place] = {}
    kinds = tuple(kinds)
    for place in places:
        users = [user for user, _ in place.users]
        for user in users:
            called_so = re.search(pattern, modules.class_name(user.module))
            if called_so or (kinds and isinstance(user.module, kinds)):
                found[id(place.module)] = user
            elif id(user.module) in found:
                found[id(place.module)] = found[id(user.module)]
    return found


# Shared tensors


def _merge(uses: Uses) -> Finding:
    found = [finding for _, finding in uses]
    best = _best(found)
    if all(finding.says_as(best) for finding in found):
        return best
    # A lookup table that is also a linear map is a tied head, whoever uses it.
    table = next((f for place, f in uses if modules.is_embedding(place.module)), None)
    if table is not None and all(_reads_table(place) for place, _ in uses):
        return table
    sure = [finding for finding in found if finding.grade != ASSUMED]
    if sure and all(finding.says_as(best) for finding in sure):
        return best
    roles = sorted({finding.role for finding in found})
    role = roles[0] if len(roles) == 1 else "dense"
    # How it is stored is no opinion: [out, in] for all that follows.
    storages = [modules.storage(place.module) for place, _ in uses]
    layout = storages[0] if all(storage == storages[0] for storage in storages) else []
    why = "shared by modules that part it differently"
    if len(roles) > 1:
        why = f"shared by modules that make different things of it: {', '.join(roles)}"
    return assumed(role, why, layout)


def _reads_table(place: Place) -> bool:
    return modules.is_embedding(place.module) or modules.is_linear(place.module)


def _declared_ties(places, findings, decisions) -> dict[int, Finding]:
    """Heads that the config declares tied. Where the embedding is elsewhere (another pipeline
    stage), both copies must take the same rule; where it is here, model and config disagree."""
    found = {}
    tables = [modules.weight_of(p.module) for p in places if modules.is_embedding(p.module)]
    shapes = [tuple(table.shape) for table in tables if table is not None]
    for key, uses in findings.items():
        place = uses[0][0]
        if decisions[key].role != "lm_head":
            continue
        if not getattr(place.config, "tie_word_embeddings", False):
            continue
        shape = modules.logical_shape(place.module)
        if not any(_C.is_padded(shape[0], rows) for rows, _ in shapes):
            found[key] = replace(decisions[key], role="embedding", options={})
        elif shape in shapes:
            why = (
                "the config has tie_word_embeddings=True, but head and table are two tensors: call "
                "model.tie_weights(), or set it to False"
            )
            found[key] = replace(decisions[key], grade=ASSUMED, why=why, options=dict(UNCENTERED))
    return found


# Heads that only names or shapes show


def _heads_by_table(places, findings, decisions, table: Place | None) -> dict[int, Finding]:
    """The linear map onto the tokens of a model that does not declare it: by its name and that of
    the table, or, as the last map of the model, by the table's shape alone."""
    weight = None if table is None else modules.weight_of(table.module)
    if table is None or weight is None:
        return {}
    if any(finding.role == "lm_head" for finding in decisions.values()):
        return {}
    if any(modules.is_linear(place.module) for place, _ in findings.get(id(weight), ())):
        return {}  # tied
    maps = [p for p in places if modules.is_linear(p.module) and not p.is_adapter]
    free = [p for p in maps if _is_free(p, decisions)]
    rows, width = weight.shape
    named = any(re.fullmatch(TOKEN_TABLES, name) for _, name in table.users)
    pattern = f"{HEADS}|{HEADS_BESIDE_TOKENS}" if named else HEADS
    for place in free:
        shape = modules.logical_shape(place.module)
        is_called_so = any(re.fullmatch(pattern, name) for _, name in place.users)
        if is_called_so and shape[1:] == (width,) and _C.is_padded(shape[0], rows):
            options = declarations.head_options(place.config) or _uncentered_by_code(place)
            storage = modules.storage(place.module)
            why = "called a head, with a row for each of the table's tokens"
            return _of_versions(place, free, Finding("lm_head", RECOGNISED, why, storage, options))
    if free and free[-1] is maps[-1] and rows != width and not _declares_heads(free[-1]):
        if modules.logical_shape(free[-1].module) == (rows, width):
            storage = modules.storage(free[-1].module)
            why = "the last map, in the table's shape"
            head = Finding("lm_head", ASSUMED, why, storage, dict(UNCENTERED))
            return _of_versions(free[-1], free, head)
    return {}


def _uncentered_by_code(place: Place) -> dict:
    """No centering where the code around the head has words of what sees a shared shift."""
    user = place.owner
    words = ("tanh", "sigmoid", "binary_cross_entropy_with_logits", "logsumexp")
    sees = user is not None and modules.calls(user.module, *words)
    return dict(UNCENTERED) if sees else {}


def _declares_heads(place: Place) -> bool:
    """Whether the map stands in a model of a library that says which its head is."""
    around: Place | None = place
    while around is not None:
        if hasattr(type(around.module), "get_output_embeddings"):
            return True
        around = around.owner
    return False


def _is_free(place: Place, decisions) -> bool:
    weight = modules.weight_of(place.module)
    finding = decisions.get(id(weight))
    if finding is None or finding.role != "dense":
        return False
    return finding.grade == ASSUMED or finding.why == _C.CHAIN


def _of_versions(place: Place, free: list[Place], finding: Finding) -> dict[int, Finding]:
    """For the map and its trainable copies."""
    same = [p for p in free if any(user in p.users for user in place.users)]
    return {id(modules.weight_of(p.module)): finding for p in same}
