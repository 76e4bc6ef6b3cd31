"""From a model to parameter groups: which rule, and which layout, for which tensor."""

import json
import warnings
from collections.abc import Collection, Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from erlangen import _C

from .decide import decide
from .findings import ASSUMED, DECLARED, Finding, assumed
from .messages import assumed_message, callers_level
from .modules import Place, has_one_weight, own_parameters, walk
from .overrides import Overrides

__all__ = ["param_groups"]

_MOST_NAMES = 16  # that a shared tensor can be called by


def param_groups(
    model: nn.Module,
    overrides: Mapping[str, Mapping] | None = None,
    *,
    adjust_lr_fn: str = "match_rms_adamw",
    strict: bool = False,
) -> list[dict]:
    """Sorts a model's trainable parameters into groups, one for each role and layout.

    A role (embedding, lm_head, router, attention, mlp_in, mlp_out, expert_in, expert_out, dense,
    lora, other) stands for the rule that the symmetry of such a block asks for. Every model is
    taken. How far a role can be relied on is its grade:

    - "declared": the library says so (the type of a torch.nn layer, get_output_embeddings(), the
      flags of transformers' experts);
    - "recognised": the names of a convention (q_proj, k_proj, v_proj, o_proj; w1, w2, w3; ...),
      and shapes that obey its equations with the sizes that modules or config state;
    - "assumed": only the type of the layer is known. A linear map is then "dense", a tensor that a
      class of its own holds "other", and the model's last linear map, if it has the shape [V, d]
      of the table of tokens, an "lm_head" (not centered). One warning says how many there are.

    Matrices of attention become one logical matrix a head, fused gate and up projections two,
    where the sizes are known. The rules of "lm_head" and "router" take the logits' shared shift
    for a symmetry, as it is under a softmax; for another loss, and with a z-loss, override it with
    {"lm_head": {"center": False}}.

    Args:
        model: any torch.nn.Module, wrapped (DistributedDataParallel, torch.compile, fully_shard)
            or not, on any device, meta included. Parameters that require no gradient are left
            out; a tied parameter appears once, under its first name.
        overrides: options by full parameter name, glob (fnmatch) or role; a name counts more than
            a glob, a glob more than a role, and of two globs the later one. {"role": "router"}
            gives another role: its rule and its options, and of the layout found before only how
            the tensor is stored. The names of a tied parameter are all its names (the first 16 of
            them).
        adjust_lr_fn: the scale by shape that the optimizer will use ("match_rms_adamw",
            "original", "spectral_unclamped", "unit_rms_norm", "none"). Under all but the first and
            the last lookup tables are normalised by columns of the transpose. Stands in the groups
            if it is not the default.
        strict: an error instead of the warning where a role is only assumed.

    Returns:
        Groups in the order of model.named_parameters(): dicts with "params", "param_names" (as
        the model given here names them), "role", options (plain values; "layout" where the tensor
        is more than one matrix or is stored another way round), and two lists parallel to
        "param_names": "evidence", the grades, and "why", the reasons in a phrase each.

    Raises:
        TypeError: `model` is no torch.nn.Module, or `overrides` no dict of dicts.
        ValueError: nothing is trainable; parameters are flattened shards (FSDP1, ZeRO-3) or not
            yet initialised; an override matches nothing, or has an unknown option or role; with
            `strict`, a role is only assumed (all of them are listed, with the override to write).
    """
    return route(model, overrides, adjust_lr_fn=adjust_lr_fn, strict=strict)


def route(
    model: nn.Module,
    overrides: Mapping[str, Mapping] | None = None,
    *,
    adjust_lr_fn: str = "match_rms_adamw",
    strict: bool = False,
    told: Collection[int] = (),
) -> list[dict]:
    """param_groups, but that what is assumed of the parameters with the ids `told` is not said."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("the model has no parameter that requires a gradient")
    places = walk(model)
    _refuse_shards(trainable, places)
    chosen = Overrides(overrides)
    aliases = _aliases(model) if overrides else {}
    findings = decide(places)
    groups, roles, unsure = {}, set(), []
    for name, parameter in trainable.items():
        finding = findings.get(id(parameter)) or _unseen(parameter)
        names = aliases.get(id(parameter), [])
        if name not in names:
            names = [name, *names]
        role, options, said = chosen.resolve(names, finding, adjust_lr_fn)
        grade, why = (DECLARED, "an override") if "role" in said else (finding.grade, finding.why)
        if "layout" in said and "role" not in said:
            why = why.removesuffix(_C.OPEN_HEADS) + "; layout: an override"
        if grade == ASSUMED and parameter.numel() and id(parameter) not in told:
            unsure.append((name, parameter, finding))
        roles.add(role)
        key = json.dumps([role, options], sort_keys=True, default=id)
        new = {"params": [], "param_names": [], "role": role, "evidence": [], "why": []}
        group = groups.setdefault(key, {**new, **options})
        group["params"].append(parameter)
        group["param_names"].append(name)
        group["evidence"].append(grade)
        group["why"].append(why)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    chosen.check_used(list(trainable), frozen, roles)
    if unsure:
        message = assumed_message(unsure, trainable, bool(strict))
        if strict:
            raise ValueError(message)
        warnings.warn(message, UserWarning, stacklevel=callers_level())
    return list(groups.values())


def _unseen(parameter: nn.Parameter) -> Finding:
    """Some wrappers of other libraries make their tensors anew whenever they are listed."""
    if parameter.ndim < 2:
        return Finding("other", DECLARED, "a vector")
    return assumed("other", "no module shows it as its own")


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter, as many as fit: nested sharing gives exponentially many."""
    names: dict[int, list[str]] = {}
    visits: dict[int, int] = {}
    stack = [("", model)]
    while stack:
        prefix, module = stack.pop()
        visits[id(module)] = visits.get(id(module), 0) + 1
        if visits[id(module)] > _MOST_NAMES or prefix.count(".") > 1000:
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append(prefix + name)
        for name, child in reversed(list(module._modules.items())):
            if child is not None:
                stack.append((f"{prefix}{name}.", child))
    return names


def _refuse_shards(parameters: dict[str, nn.Parameter], places: list[Place]) -> None:
    """Refuses tensors whose shape is not that of the weight."""
    flat = set()
    for place in places:
        own = [p for _, p in own_parameters(place.module)]
        # One that is parametrised has parts instead.
        is_whole = has_one_weight(place.module) and not list(place.module._modules.items())
        if is_whole and own and all(p.ndim < 2 for p in own):
            flat.update(id(p) for p in own)
    for name, p in parameters.items():
        if is_lazy(p):
            raise ValueError(
                f"{name}: not initialised yet (a lazy module); run a forward pass first"
            )
        # What FSDP1 and ZeRO-3 leave on their tensors.
        is_fsdp1 = getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False)
        is_zero3 = hasattr(p, "ds_id") or hasattr(p, "ds_shape")
        if is_fsdp1 or is_zero3 or id(p) in flat:
            kind = "FSDP1" if is_fsdp1 else "ZeRO-3" if is_zero3 else "FSDP1, ZeRO-3"
            raise ValueError(
                f"{name}: a flattened shard ({kind}) of shape {list(p.shape)}; its matrix is gone "
                "and with it what the rules work on. Use DDP, which keeps it"
            )
