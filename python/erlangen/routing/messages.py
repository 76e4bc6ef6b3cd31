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
    for (kind, shape, role, why), names in shown:
        count = f"{len(names)} × " if len(names) > 1 else ""
        name = kind if len(names) > 1 else names[0]
        lines.append(f"  {count}{name} {list(shape)}: {role}, as {why}")
    if len(shown) < len(kinds):
        lines.append(f"  ... and {len(kinds) - len(shown)} more kinds")
    most = sorted(kinds.items(), key=lambda item: -len(item[1]))[:_MOST_EXAMPLES]
    examples = {kind if len(names) > 1 else names[0]: role for (kind, _, role, _), names in most}
    written = "".join(f"    {name!r}: {{'role': {role!r}}},\n" for name, role in examples.items())
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
