"""State dicts of other versions, groupings and optimizers, in the terms of the optimizer that loads
them."""

from typing import Any

import torch

from . import _C
from ._options import KNOWN, OF_EACH, OPTIONS

_STATE = set(_C.state_names())  # the entries of a parameter's state that are ours
# What LR schedulers add to groups, of any optimizer.
_OF_SCHEDULERS = {
    "initial_lr",
    "max_lr",
    "min_lr",
    "base_momentum",
    "max_momentum",
    "swa_lr",
    "lr_scale",
}


def names_of_0_1(options: dict) -> bool:
    """Whether ``lr_scale`` is what version 0.1 called update_scale, and not timm's factor on lr."""
    return "lr_scale" in options and "rule" in options and "update_scale" not in options


def renamed(options: dict) -> dict:
    """A saved group in today's names."""
    if not names_of_0_1(options):
        return options
    return {{"lr_scale": "update_scale"}.get(key, key): value for key, value in options.items()}


def check_form(state_dict: dict) -> None:
    """Raises ValueError for what is no optimizer's state dict."""
    for key in ("param_groups", "state"):
        if key not in state_dict:
            raise ValueError(f"the state dict has no {key!r}, but {list(state_dict)[:5]}")
    if not isinstance(state_dict["param_groups"], (list, tuple)):
        raise ValueError("param_groups of the state dict is no list; allowed: a list")
    for index, group in enumerate(state_dict["param_groups"]):
        params = group.get("params") if isinstance(group, dict) else None
        if not isinstance(params, (list, tuple)):
            raise ValueError(
                f"param_groups[{index}] of the state dict is {group!r:.100}; allowed: a dict with "
                "a list of params"
            )


def fitted(groups: list[dict], live: list[dict], state: dict) -> list[dict]:
    """The saved groups in the place of the live ones.

    Where all groups on both sides name their parameters, by the same names, each parameter is the
    one of its name. A live group then has the options on which the saved groups of its parameters
    agree. Else groups and parameters are taken in their order, as torch does, which also raises
    where their numbers differ. What a saved group lacks, the live one keeps.

    Raises:
        ValueError: groups of optimizers whose options or state mean something else here.
    """
    if any(isinstance(param, str) for group in groups for param in group["params"]):
        # torch.distributed.checkpoint has put each parameter into its place by its own names; the
        # groups' are those of one saved group, whichever parameters it had.
        groups = [_without(group, *OF_EACH) for group in groups]
    places = _places(groups, live)
    if places is None:
        sources = [[index] for index in range(len(groups))]
        result = [dict(group) for group in groups]
    else:
        sources = [sorted({index for index, _ in of_group}) for of_group in places]
        result = []
        for of_group, indices, mine in zip(places, sources, live, strict=True):
            params = [groups[index]["params"][position] for index, position in of_group]
            of_all = _agreed([_without(groups[i], "params", *OF_EACH) for i in indices])
            of_each = {key: list(mine[key]) for key in OF_EACH if key in mine}
            result.append({**of_all, **of_each, "params": params})
            # What they disagree on is the live group's own, a scheduler's entries too.
            for key in {key for i in indices for key in groups[i]} & mine.keys():
                result[-1].setdefault(key, mine[key])
    for indices, mine in zip(sources, live, strict=False):
        for index in indices:
            _refuse_foreign(index, groups[index], mine, state)
    for group, mine in zip(result, live, strict=False):
        for key in mine.keys() & KNOWN:
            group.setdefault(key, mine[key])
    return result


def _without(group: dict, *keys: str) -> dict:
    return {key: value for key, value in group.items() if key not in keys}


def _places(groups: list[dict], live: list[dict]) -> list[list[tuple[int, int]]] | None:
    """For each parameter of each live group, saved group and position of the one of its name; None
    where names do not say it."""
    for group in (*groups, *live):
        names = group.get("param_names")
        if not isinstance(names, (list, tuple)) or len(names) != len(group["params"]):
            return None
        if not all(isinstance(name, str) for name in names):
            return None
    found = {
        name: (index, position)
        for index, group in enumerate(groups)
        for position, name in enumerate(group["param_names"])
    }
    wanted = [name for group in live for name in group["param_names"]]
    count = sum(len(group["params"]) for group in groups)
    if not len(found) == len(wanted) == count or found.keys() != set(wanted):
        return None
    return [[found[name] for name in group["param_names"]] for group in live]


def _agreed(groups: list[dict]) -> dict:
    """The entries that all of these groups have."""
    first, *rest = groups or [{}]
    return {
        key: value
        for key, value in first.items()
        if all(key in group and _same(value, group[key]) for group in rest)
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def _refuse_foreign(index: int, group: dict, mine: dict, state: dict) -> None:
    """Refuses groups of other optimizers whose options or state mean something else here."""
    where = f"param_groups[{index}] of the state dict is"
    if group.get("amsgrad"):
        raise ValueError(
            f"{where} an AMSGrad's, whose maximum (max_exp_avg_sq) no rule continues from; "
            "allowed: amsgrad=False"
        )
    if "rule" in group:  # ours, whatever keys of other people it has
        return
    if "dampening" in group:
        raise ValueError(
            f"{where} torch.optim.SGD's, whose momentum is a sum of gradients and not their average"
        )
    coupled = group.get("decoupled_weight_decay") is False and group.get("weight_decay")
    if coupled or ("decoupled_weight_decay" in group and "amsgrad" not in group):
        raise ValueError(f"{where} not torch.optim.AdamW's; allowed with adamw: AdamW's")
    if "amsgrad" in group and mine["rule"] != "adamw":
        rule = mine["rule"]
        raise ValueError(f"{where} an Adam's; allowed with rule {rule!r}: torch.optim.Muon's")
    if group.get("adjust_lr_fn", "") is None:
        raise ValueError(f"{where} torch.optim.Muon's; allowed: to load it into erlangen.Muon")
    if "amsgrad" in group or {"ns_coefficients", "adjust_lr_fn"} <= group.keys():
        return  # AdamW's, torch.optim.Muon's
    allowed = (
        "allowed: Equivariant's, torch.optim.AdamW's and, in erlangen.Muon, torch.optim.Muon's"
    )
    foreign = group.keys() - (KNOWN | _OF_SCHEDULERS | {"params"})
    if foreign:
        names = ", ".join(sorted(map(str, foreign)))
        raise ValueError(f"{where} another optimizer's, with {names}; {allowed}")
    states = [state[param] for param in group["params"] if isinstance(state.get(param), dict)]
    if any("momentum_buffer" in entries for entries in states) and group.keys() & OPTIONS.keys():
        raise ValueError(
            f"{where} another optimizer's: it has no rule and is not torch.optim.Muon's, and "
            "nothing says that its momentum is an average of gradients and not their sum; "
            f"{allowed}"
        )


def restore_dtypes(state_dict: dict, groups: list[dict], state: dict) -> None:
    """Undoes torch's cast of our float state to the parameter's dtype. Entries of others stay as
    torch loads them."""
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    params = [p for group in groups for p in group["params"]]
    for index, param in zip(saved, params, strict=True):
        for name, value in state_dict["state"].get(index, {}).items():
            # A number from older torch; on the CPU from an AdamW that is neither fused nor
            # capturable.
            if name == "step" and isinstance(value, (int, float, torch.Tensor)):
                step = torch.as_tensor(value, dtype=torch.float32, device=param.device)
                state[param][name] = step.clone().reshape(() if step.numel() == 1 else -1)
            elif name in _STATE and isinstance(value, torch.Tensor):
                if value.dtype != state[param][name].dtype:
                    state[param][name] = value.to(param.device)


def stepped(state: dict) -> dict:
    """The states that have something of ours. Wrappers read, and so make, the state of a parameter
    that no step has come to."""
    return {
        param: entry
        for param, entry in state.items()
        if not isinstance(entry, dict) or not _STATE.isdisjoint(entry)
    }
