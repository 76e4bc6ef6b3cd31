"""What stands in parameter groups: options, entries of other people, and slips of the pen."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from . import _C

# Groups with the same number here were added as one, and have one lr: that of the last of them
# (thawing.py). A plain entry, so that it is saved, copied and loaded as the others are.
LINK = "lr_with"
# Lists that say something of each of a group's parameters. A copy of a group with part of these, as
# ZeroRedundancyOptimizer makes, has the whole group's: longer, kept, and not used.
OF_EACH = ("param_names", "evidence", "why")
# Entries of a group that have no default: each group has its own.
OF_GROUP = {"role", *OF_EACH, LINK}
OPTIONS = {k: v for k, v in _C.default_options().items() if k not in OF_GROUP}
KNOWN = OPTIONS.keys() | OF_GROUP

# Options of version 0.1; in groups lr_scale is timm's.
RENAMED = {"lr_scale": "update_scale"}

# Of torch's optimizers: values that ask for nothing but speed, or for nothing at all.
_OF_TORCH = {
    "foreach": (None, False, True),
    "fused": (None, False, True),
    "differentiable": (None, False),
    "amsgrad": (None, False),
}


def arguments(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options among a constructor's keyword arguments, as plain values.

    Raises:
        ValueError: one that does not exist, or one of torch's with a value that nothing here does.
        TypeError: a value of a type that no option has.
    """
    _check_torchs(options, where)
    options = {key: value for key, value in options.items() if key not in _OF_TORCH}
    for key in options:
        if key not in OPTIONS:
            near = _near(key)
            hint = f" (did you mean {near!r}?)" if near else ""
            if key in RENAMED:
                hint = f" (it is called {RENAMED[key]!r})"
            raise ValueError(
                f"{where}: unknown option {key!r}{hint}; allowed: {', '.join(sorted(OPTIONS))}"
            )
    return _plain(options, where)


def entries(group: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The entries of a group, options as plain values. Keys of other people stay (schedulers,
    wrappers, ``name``, ``lr_mult``); one that is nearly an option's name is a slip.

    Raises:
        ValueError: a slip, or an entry of torch's with a value that nothing here does.
        TypeError: a value of a type that no option has.
    """
    _check_torchs(group, where)
    for key in group:
        known = key in KNOWN or key in _OF_TORCH or key == "params"
        if not known and (near := _near(key)):
            raise ValueError(f"{where}: unknown option {key!r}; did you mean {near!r}?")
    return _plain(group, where)


def _check_torchs(options: Mapping[str, Any], where: str) -> None:
    for key, allowed in _OF_TORCH.items():
        if key in options and not any(options[key] is value for value in allowed):
            raise ValueError(
                f"{where}: {key} is {options[key]!r}, which no rule here does; allowed: "
                f"{', '.join(map(str, allowed))}, which change nothing"
            )


def _near(key: Any) -> str | None:
    """The option whose name differs from a key by two letters, or by one if one of them is short.

    Keys of one or two letters are as near to ``lr`` as any other: only its own letters count.
    """
    key = str(key)
    for name in sorted(KNOWN):
        allowed = 2 if min(len(key), len(name)) > 5 else 1 if len(key) > 2 else 0
        if _edits(key.lower(), name) <= allowed:
            return name
    return None


def _edits(a: str, b: str) -> int:
    """The letters inserted, left out, replaced or swapped with their neighbour from a to b."""
    before, last = [], list(range(len(b) + 1))
    for i, x in enumerate(a):
        row = [i + 1]
        for j, y in enumerate(b):
            row.append(min(last[j] + (x != y), last[j + 1] + 1, row[j] + 1))
            if i and j and (x, a[i - 1]) == (b[j - 1], y):
                row[-1] = min(row[-1], before[j - 1] + 1)
        before, last = last, row
    return last[-1]


def _plain(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy in which the values of options are Python's own, as checkpoints must have them:
    lists, dicts and numbers of other libraries (OmegaConf, numpy) become what they stand for.
    Tensors stay."""
    return {
        key: value if key not in KNOWN or _is_plain(value) else _C.plain(f"{where}: {key}", value)
        for key, value in options.items()
    }


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return (
        value is None or isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str)
    )


def parameters(params: Any, where: str) -> list:
    """The tensors, or pairs of name and tensor, of a group.

    Raises:
        TypeError: no list of them, or one without an order, such as a set.
    """
    if isinstance(params, torch.Tensor):
        return [params]
    if isinstance(params, (set, frozenset)):
        raise TypeError(f"{where}: params is a set, which has no order; allowed: a list")
    is_model = isinstance(params, torch.nn.Module) and not isinstance(
        params, torch.nn.ParameterList
    )
    if is_model or isinstance(params, (str, Mapping)) or not isinstance(params, Iterable):
        what = f"a {type(params).__name__}" if is_model else repr(params)
        raise TypeError(
            f"{where}: params is {what}; allowed: a tensor or a list of tensors"
            + (", such as its parameters()" if is_model else "")
        )
    return list(params)
