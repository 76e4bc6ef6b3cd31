"""What the tests of routing share."""

import warnings

import torch
from erlangen.routing import param_groups
from torch import nn


def groups_of(model, overrides=None, **kwargs):
    """The model's groups, without the warning about what is assumed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the role of .* is only assumed")
        return param_groups(model, overrides, **kwargs)


def found(model, **kwargs):
    """Name -> (role, layout)."""
    return {
        name: (group["role"], group.get("layout"))
        for group in groups_of(model, **kwargs)
        for name in group["param_names"]
    }


def grades(model, **kwargs):
    """Name -> grade."""
    return {
        name: grade
        for group in groups_of(model, **kwargs)
        for name, grade in zip(group["param_names"], group["evidence"], strict=True)
    }


LISTS = ("params", "param_names", "evidence", "why")  # parallel to each other


def options_by_tensor(model, **kwargs):
    """Id of the parameter -> everything that its group says of all its members, and its grade."""
    return {
        id(p): ({k: v for k, v in group.items() if k not in LISTS}, grade)
        for group in groups_of(model, **kwargs)
        for p, grade in zip(group["params"], group["evidence"], strict=True)
    }


def changed_claims(before, after):
    """What `options_by_tensor` claims after a change of names and did not claim before: the grade
    may fall, but no other role or layout may be declared or recognised."""
    assert before.keys() == after.keys()
    return {
        key: (before[key], (options, grade))
        for key, (options, grade) in after.items()
        if grade != "assumed" and options["role"] != before[key][0]["role"]
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
