"""From a model to parameter groups: which rule, and which layout, for which tensor."""

import json
from collections.abc import Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from .evidence import Finding, collect, undecided
from .modules import walk
from .overrides import ROLES, Overrides
from .sharing import decide

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module,
    overrides: Mapping[str, Mapping] | None = None,
    *,
    adjust_lr_fn: str = "match_rms_adamw",
) -> list[dict]:
    """Sorts a model's trainable parameters into groups, one for each role and layout.

    A role (embedding, lm_head, router, attention, mlp_in, mlp_out, expert_in, expert_out, dense,
    lora, other) stands for the rule that the symmetry of such a block asks for. It is found by
    what a module is (its class, the class that encloses it, the config's head and expert counts,
    what get_output_embeddings() returns), by sharing and by shape, never by name. Matrices of
    attention become one logical matrix a head, fused gate and up projections two.

    A linear map of a class of your own is "dense", except for the last one of the model if it
    alone has the shape [V, d] of an nn.Embedding: that is the "lm_head". Its rule takes the
    logits' shared shift for a symmetry, as it is under a softmax; for another loss, and with a
    z-loss, override it with {"lm_head": {"center": False}}.

    Args:
        model: any torch.nn.Module, wrapped (DistributedDataParallel, torch.compile, fully_shard)
            or not, on any device, meta included. Parameters that require no gradient are left
            out; a tied parameter appears once, under its first name.
        overrides: options by full parameter name, glob (fnmatch) or role; a name counts more than
            a glob, a glob more than a role, and of two globs the later one. {"role": "router"}
            gives another role: its rule and its options, without the layout found before. All
            names of a tied parameter are its names.
        adjust_lr_fn: the scale by shape that the optimizer will use ("match_rms_adamw",
            "original", "spectral_unclamped", "unit_rms_norm", "none"). Under all but the first and
            the last lookup tables are normalised by columns of the transpose. Stands in the groups
            if it is not the default.

    Returns:
        Groups in the order of model.named_parameters(): dicts with "params", "param_names" (as
        the model given here names them), "role" and options, all plain values; "layout" where the
        tensor is more than one matrix or is stored another way round.

    Raises:
        TypeError: `model` is no torch.nn.Module, or `overrides` no dict of dicts.
        ValueError: nothing is trainable; parameters are flattened shards (FSDP1, ZeRO-3) or not
            yet initialised; an override matches nothing, or has an unknown option or role; a
            tensor has no role (all of them are listed, with the override to write).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    aliases = _aliases(model)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("the model has no parameter that requires a gradient")
    _refuse_shards(trainable)

    chosen = Overrides(overrides)
    places = walk(model)
    findings = decide(places, collect(places))
    groups, roles, missing = {}, set(), []
    for name, parameter in trainable.items():
        finding = findings.get(id(parameter), undecided("no module shows it as its own"))
        names = aliases.get(id(parameter), [name])
        role, options = chosen.resolve(names, finding, adjust_lr_fn)
        if role is None:
            missing.append((name, parameter, finding))
            continue
        roles.add(role)
        key = json.dumps([role, options], sort_keys=True, default=id)
        group = groups.setdefault(key, {"params": [], "param_names": [], "role": role, **options})
        group["params"].append(parameter)
        group["param_names"].append(name)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    chosen.check_used(list(trainable), frozen, roles)
    if missing:
        raise ValueError(_undecided_message(missing))
    return list(groups.values())


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _refuse_shards(parameters: dict[str, nn.Parameter]) -> None:
    """Refuses tensors whose shape is not that of the weight."""
    for name, p in parameters.items():
        if is_lazy(p):
            raise ValueError(
                f"{name}: not initialised yet (a lazy module); run a forward pass first"
            )
        # What FSDP1 and ZeRO-3 leave on their tensors. A rank that holds nothing of a tensor has
        # an empty one in its place.
        is_fsdp1 = getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False)
        is_zero3 = hasattr(p, "ds_id") or hasattr(p, "ds_shape")
        if is_fsdp1 or is_zero3 or (p.ndim == 1 and p.numel() == 0):
            kind = "FSDP1" if is_fsdp1 else "ZeRO-3" if is_zero3 else "FSDP1, ZeRO-3"
            raise ValueError(
                f"{name}: a flattened shard ({kind}) of shape {list(p.shape)}; its matrix is gone "
                "and with it what the rules work on. Use DDP, which keeps it"
            )


def _undecided_message(missing: list[tuple[str, nn.Parameter, Finding]]) -> str:
    lines = [f"  {name} {list(p.shape)}: {finding.why}" for name, p, finding in missing]
    examples = []
    for name, _, finding in missing[:3]:
        role = "lm_head" if "lm_head" in finding.why else "dense"
        override = {"role": role} | ({"layout": finding.layout} if finding.layout else {})
        examples.append(f"    {name!r}: {override},")
    if len(missing) > 3:
        examples.append("    ...")
    return (
        f"{len(missing)} of the model's parameters cannot be given a role:\n"
        + "\n".join(lines)
        + "\nSay what they are, by name or glob, for example\n"
        + "  erlangen.param_groups(model, overrides={\n"
        + "\n".join(examples)
        + "\n  })\n"
        + f"with the role that is true of each: {', '.join(ROLES)}; a tensor that is not one "
        + 'matrix [out, in] also needs its "layout".'
    )
