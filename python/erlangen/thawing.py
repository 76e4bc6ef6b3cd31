"""Groups that come without a rule, to an optimizer that was made from a model."""

import contextlib
import copy
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from . import _C
from ._options import LINK, OF_EACH
from .routing import route

__all__ = ["Origin", "check_link", "follow", "link", "without_model"]


class Origin:
    """The model that an optimizer was made from, and the choices it was made with.

    The reference is weak, so that an optimizer keeps no model alive.
    """

    def __init__(self, model: nn.Module, choices: dict):
        self._model = weakref.ref(model)
        self._choices = copy.deepcopy(choices)

    def split(self, group: dict, known: Iterable[torch.Tensor], where: str) -> list[dict]:
        """The groups that ``param_groups(model)`` makes of a group's parameters, with one lr.

        Args:
            group: "params" and what else its groups shall have, instead of what the model says.
            known: parameters that the optimizer has; overrides may be for them alone.
            where: names the group in errors.

        Raises:
            ValueError, TypeError: the model is gone or has not all of the parameters, or what
                ``param_groups`` raises.
        """
        model = self._model()
        if model is None:
            raise without_model(where, "the model that this optimizer was made from is gone")
        params, names = _params_and_names(group)
        for index, p in enumerate(params):
            if not isinstance(p, torch.Tensor) or not p.is_floating_point():
                what = p.dtype if isinstance(p, torch.Tensor) else type(p).__name__
                raise TypeError(
                    f"{where}, parameter {index} is {what}; allowed: floating point tensors"
                )
        wanted = {id(p): index for index, p in enumerate(params)}
        with _thawed([*params, *known]):
            # What is assumed of all others was told, or will be, when they come.
            told = {id(p) for p in model.parameters()} - wanted.keys()
            routed = route(model, **self._choices, told=told)
        found = {id(p) for part in routed for p in part["params"]}
        for p, index in wanted.items():
            if p not in found:
                raise without_model(
                    where,
                    f"its parameter {index}, of shape {list(params[index].shape)}, is not of the "
                    "model that this optimizer was made from",
                )
        own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        parts = []
        for part in routed:
            chosen = [i for i, p in enumerate(part["params"]) if id(p) in wanted]
            if chosen:
                parts.append(_part_of(part, chosen) | _copied(own))
        if names:
            for part in parts:
                part["param_names"] = [names[wanted[id(p)]] for p in part["params"]]
        _tell_apart(parts)
        return parts

    def in_order(self, groups: list[dict]) -> list[dict]:
        """Groups of one parameter each, in the model's order; as they are if the model is gone."""
        model = self._model()
        order = {} if model is None else {id(p): i for i, p in enumerate(model.parameters())}
        single = [_part_of(group, [i]) for group in groups for i in range(len(group["params"]))]
        if any(id(group["params"][0]) not in order for group in single):
            return groups
        return sorted(single, key=lambda group: order[id(group["params"][0])])


def without_model(where: str, why: str) -> ValueError:
    return ValueError(
        f'{where} has no rule, and {why}; allowed: {{"params": params, "rule": rule}} with one of '
        f"{', '.join(_C.rule_names())}, or the groups of erlangen.param_groups(model) that hold "
        "these parameters"
    )


def link(parts: list[dict], groups: list[dict]) -> None:
    """Lets parts of one group have one lr from now on, beside these groups."""
    if len(parts) > 1:
        number = 1 + max((group.get(LINK, 0) for group in groups), default=0)
        for part in parts:
            part[LINK] = number


def check_link(group: dict, where: str) -> None:
    value = group.get(LINK, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: {LINK} is {value!r}; allowed: an int")


def follow(groups: list[dict]) -> None:
    """Gives linked groups the lr of the last of them.

    Who adds a group goes on to steer the last one, as Lightning's BackboneFinetuning does.
    """
    last = {}
    for index, group in reversed(list(enumerate(groups))):
        if LINK not in group:
            continue
        where = f"param_groups[{index}]"
        check_link(group, where)
        leader = last.setdefault(group[LINK], group)
        if leader is group:
            _C.check_group(group, index)  # a bad lr goes to no other group
            continue
        lr = leader["lr"]
        if not isinstance(lr, torch.Tensor):
            group["lr"] = lr
        elif isinstance(group["lr"], torch.Tensor):  # in place: a CUDA graph may read it there
            group["lr"].copy_(lr)
        else:  # a tensor of its own, as schedulers change them in place
            group["lr"] = lr.clone()


def _params_and_names(group: dict) -> tuple[list[torch.Tensor], list[str]]:
    """Each parameter once: what walks over modules meets tied ones several times."""
    names = list(group.get("param_names", ()))
    pairs = {}
    for index, p in enumerate(group["params"]):
        name, p = p if isinstance(p, tuple) else (names[index] if index < len(names) else None, p)
        pairs.setdefault(id(p), (p, name))
    params = [p for p, _ in pairs.values()]
    names = [name for _, name in pairs.values() if name is not None]
    return params, names if len(names) == len(params) else []


def _part_of(group: dict, chosen: list[int]) -> dict:
    """A routed group with some of its parameters, and of each list beside them what is theirs."""
    lists = ("params", *OF_EACH)
    return {
        key: [value[i] for i in chosen] if key in lists else value for key, value in group.items()
    }


def _copied(options: dict) -> dict:
    return {
        key: value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        for key, value in options.items()
    }


def _tell_apart(parts: list[dict]) -> None:
    """A "name" stays the last part's; Lightning's LearningRateMonitor wants different ones."""
    for index, part in enumerate(parts[:-1]):
        if isinstance(part.get("name"), str):
            part["name"] += f" [{index}]"


@contextlib.contextmanager
def _thawed(params: Iterable[torch.Tensor]) -> Iterator[None]:
    """Parameters as they are when trained: param_groups leaves out what is frozen."""
    frozen = [p for p in params if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
