"""From findings to one decision a parameter: shared tensors, and heads that only a shape shows."""

from torch import nn

from .evidence import Finding, undecided
from .modules import Place, in_library, is_embedding, is_linear, matrices_of

Uses = list[tuple[Place, Finding]]


def decide(places: list[Place], findings: dict[int, Uses]) -> dict[int, Finding]:
    """One finding for each parameter, keyed by its id."""
    decisions = {key: _merge(uses) for key, uses in findings.items()}
    tables = [p for place in places if is_embedding(place.module) for p in _matrices(place)]
    decisions |= _declared_ties(findings, decisions, tables)
    decisions |= _heads_by_shape(places, decisions, tables)
    return decisions


def _merge(uses: Uses) -> Finding:
    found = [finding for _, finding in uses]
    if all(finding == found[0] for finding in found):
        return found[0]
    # A lookup table that is also a linear map is a tied head, whoever uses it.
    table = next((f for place, f in uses if is_embedding(place.module)), None)
    if table is not None and all(_reads_table(place) for place, _ in uses):
        return table
    roles = sorted({finding.role or "undecided" for finding in found})
    if roles == ["undecided"]:
        return found[0]
    return undecided(f"shared by modules that make different things of it ({', '.join(roles)})")


def _reads_table(place: Place) -> bool:
    return is_embedding(place.module) or isinstance(place.module, nn.Linear)


def _matrices(place: Place) -> list[nn.Parameter]:
    return [p for _, p in matrices_of(place.module)]


# Tied by declaration


def _declared_ties(findings, decisions, tables) -> dict[int, Finding]:
    """Heads that the config declares tied. Where the embedding is elsewhere (another pipeline
    stage), both copies must take the same rule; where it is here, model and config disagree."""
    found = {}
    for key, uses in findings.items():
        place = uses[0][0]
        if decisions[key].role != "lm_head":
            continue
        if not getattr(place.config, "tie_word_embeddings", False):
            continue
        shape = _matrices(place)[0].shape
        if any(table.shape == shape for table in tables):
            found[key] = undecided(
                "the config has tie_word_embeddings=True, but head and embedding are two tensors: "
                "call model.tie_weights(), or set it to False"
            )
        else:
            found[key] = Finding("embedding")
    return found


# Heads without family or config


def _heads_by_shape(places, decisions, tables) -> dict[int, Finding]:
    """Linear maps of the user's own that have the shape [V, d] of a lookup table.

    The head is the last linear map that the model defines, if it is the only such one. With any
    doubt all of them are undecided.
    """
    linears = [p for p in places if is_linear(p.module) and not p.is_adapter]
    candidates = _candidates(linears, decisions, tables)
    if not candidates:
        return {}
    read = {id(p) for place in linears for p in _matrices(place)}
    is_tied = any(id(table) in read for table in tables)
    has_head = is_tied or any(d.role == "lm_head" for d in decisions.values())
    last = linears[-1].module

    found = {}
    for key, place in candidates.items():
        rows, columns = _matrices(place)[0].shape
        is_only_one = len(candidates) == 1 and not has_head
        if rows == columns:
            # As a rule a position table as long as the model is wide, and this an inner layer;
            # only as the last one it may be a head.
            if place.module is last and not has_head:
                found[key] = undecided(
                    "as the last layer, and of an embedding's shape: an lm_head?"
                )
        elif is_only_one and place.module is last:
            found[key] = Finding("lm_head")
        else:
            found[key] = undecided("it has the shape of an embedding: an lm_head, or dense?")
    return found


def _candidates(linears, decisions, tables) -> dict[int, Place]:
    """Keyed by the weight's id."""
    shapes = {tuple(table.shape) for table in tables}
    found = {}
    for place in linears:
        if not isinstance(place.module, nn.Linear) or in_library(place.owner):
            continue
        for p in _matrices(place):
            if tuple(p.shape) in shapes and decisions[id(p)].role == "dense":
                if not _is_first_of_mlp(place, linears):
                    found[id(p)] = place
    return found


def _is_first_of_mlp(place: Place, linears: list[Place]) -> bool:
    """Whether another layer of the same module leads back: with V = 4·d the first layer of an MLP
    looks like a head. Not where the module holds the embedding, so may hold head and MLP too."""
    rows, columns = _matrices(place)[0].shape
    if rows == columns or place.owner is None:
        return False
    if any(is_embedding(module) for module in place.owner.modules()):
        return False
    siblings = [other for other in linears if other.owner is place.owner]
    return any(tuple(p.shape) == (columns, rows) for other in siblings for p in _matrices(other))
