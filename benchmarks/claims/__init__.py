"""What the groups of param_groups claim of a model, put to the test on its outputs.

A role and a layout say which rows of a matrix are a head's, which are neurons and which experts.
Such parts can be put in another order, in all tensors that share them, and the model computes the
same; cut anywhere else it does not. From the groups alone (role, layout, names) check() makes

heads: the heads of an attention moved round, queries with their keys and values, and the columns
    of what takes their outputs; a head's values turned, and the outputs turned back (else one
    claimed head could be several); rows of one head exchanged with those of another (else several
    could be one).
neurons: those of an MLP, or of each expert, in another order; gate exchanged with up in some rows.
experts: with the router's rows in reverse order; without them.

What the groups do not say is searched for: in which order a fused tensor has queries, keys and
values, and which gains, tables and buffers beside the matrices move along.
"""

from .changes import Model, Outcome, claims_of
from .heads import check_heads
from .units import check_experts, check_neurons

__all__ = ["Model", "Outcome", "check"]


def check(model: Model, groups: list[dict]) -> list[Outcome]:
    """One outcome for each block of a kind (the first of several layers), or for each tensor that
    is in none."""
    claims, wrong = claims_of(groups, model.tensors)
    found = check_heads(model, claims) + check_neurons(model, claims)
    return wrong + found + check_experts(model, claims)
