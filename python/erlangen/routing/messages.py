"""What routing tells the user."""

import sys
from collections.abc import Mapping

from torch import nn

from erlangen import _C

from .findings import Finding


def callers_level() -> int:
    """The stacklevel, for whoever calls this, of the first frame outside torch and erlangen."""
    level = 1
    while (frame := sys._getframe(level)).f_back is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] not in ("torch", "erlangen"):
            break
        level += 1
    return level


def assumed_message(
    unsure: list[tuple[str, nn.Parameter, Finding]],
    trainable: Mapping[str, nn.Parameter],
    strict: bool,
) -> str:
    """Says what is only assumed, one line a kind, and which override makes it sure."""
    params = [(name, list(p.shape), finding.role, finding.why) for name, p, finding in unsure]
    sizes = [p.numel() for p in trainable.values() if p.ndim >= 2]
    return _C.assumed_message(params, list(trainable), len(sizes), sum(sizes), strict)
