"""What the tests of routing share."""

import torch
from erlangen.routing import param_groups
from torch import nn


def found(model, **kwargs):
    """Name -> (role, layout)."""
    return {
        name: (group["role"], group.get("layout"))
        for group in param_groups(model, **kwargs)
        for name in group["param_names"]
    }


def options_by_tensor(model, **kwargs):
    """Id of the parameter -> everything that its group says."""
    return {
        id(p): {k: v for k, v in group.items() if k not in ("params", "param_names")}
        for group in param_groups(model, **kwargs)
        for p in group["params"]
    }


def as_matrices(weight, layout):
    """The logical matrices, as the meaning of the layout's verbs defines them."""
    for step in layout:
        dim = step.get("dim")
        if "transpose" in step:
            weight = weight.mT
        elif "flatten" in step:
            weight = weight.flatten(1)
        elif "heads" in step:
            weight = torch.stack(weight.chunk(step["heads"], dim=dim), dim=-3)
        elif step.get("pairs") == "interleaved":
            assert dim == -2
            weight = torch.cat([weight[..., ::2, :], weight[..., 1::2, :]], dim=-1)
    return weight


class Holder(nn.Module):
    """A class of the user's own."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
