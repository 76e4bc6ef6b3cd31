"""What routing tells the user: tensors of one kind on one line, and the override to write."""

import re
import sys
from collections.abc import Iterable

from torch import nn

from .findings import Finding

_MOST_KINDS = 12  # that a warning lists
_MOST_EXAMPLES = 3


def callers_level() -> int:
    """The stacklevel, for whoever calls this, of the first frame outside torch and erlangen."""
    level = 1
    while (frame := sys._getframe(level)).f_back is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] not in ("torch", "erlangen"):
            break
        level += 1
    return level


def kind_of(name: str) -> str:
    """The name with its numbers left open: one for all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)


def _glob_of(names: list[str]) -> str:
    """What matches all of them: numbers stay where they are the same in each."""
    parts = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(part[0] if len(set(part)) == 1 else "*" for part in parts)


def assumed_message(
    unsure: list[tuple[str, nn.Parameter, Finding]],
    all_params: Iterable[nn.Parameter],
    strict: bool,
) -> str:
    """Says what is only assumed, one line a kind, and which override makes it sure."""
    kinds: dict[tuple, list] = {}
    for name, p, finding in unsure:
        kinds.setdefault((kind_of(name), tuple(p.shape), finding.role, finding.why), []).append(
            name
        )
    matrices = [p for p in all_params if p.ndim >= 2]
    share = sum(p.numel() for _, p, _ in unsure) / max(sum(p.numel() for p in matrices), 1)
    shown = list(kinds.items()) if strict else list(kinds.items())[:_MOST_KINDS]
    lines = []
    for (_, shape, role, why), names in shown:
        count = f"{len(names)} × " if len(names) > 1 else ""
        lines.append(f"  {count}{_glob_of(names)} {list(shape)}: {role}, as {why}")
    if len(shown) < len(kinds):
        lines.append(f"  ... and {len(kinds) - len(shown)} more kinds")
    most = sorted(kinds.items(), key=lambda item: -len(item[1]))
    most = most if strict else most[:_MOST_EXAMPLES]
    examples = {_glob_of(names): role for (_, _, role, _), names in most}
    written = "".join(f"    {name!r}: {{'role': {role!r}}},\n" for name, role in examples.items())
    if len(most) < len(kinds):
        written += "    ...\n"
    return (
        f"the role of {len(unsure)} of {len(matrices)} matrices ({share:.1%} of their elements) is "
        "only assumed, from the type of the layer:\n"
        + "\n".join(lines)
        + "\nSay what they are, by name or glob:\n  overrides={\n"
        + written
        + "  }\nwith attention, mlp_in, mlp_out, expert_in, expert_out, router, embedding, lm_head "
        + 'or dense for a matrix [out, in] (with its "layout", such as [{"heads": 8, "dim": -2}], '
        + "if it is several or stored another way), and other for everything else."
    )
