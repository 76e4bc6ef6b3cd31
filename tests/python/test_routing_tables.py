"""Further models against tables written by hand from their modelling code."""

import warnings

import expected_decoders
import expected_diffusers
import expected_encoders
import expected_further
import expected_images
import expected_mixtures
import expected_own
import expected_recurrent
import pytest
from erlangen.routing import param_groups
from expected_cases import contradiction, matches, matrices
from expected_roles import hide_names
from oracles import logical_matrices

GROUPS = (
    expected_decoders,
    expected_mixtures,
    expected_recurrent,
    expected_encoders,
    expected_images,
    expected_diffusers,
    expected_own,
    expected_further,
)
CASES = {name: case for group in GROUPS for name, case in group.CASES.items()}
GRADES = {"declared", "recognised", "assumed"}
cases = pytest.mark.parametrize("name", CASES)


def findings(model):
    """For each parameter: name, the tensor, its group, its evidence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is assumed
        groups = param_groups(model)
    assert {e for group in groups for e in group["evidence"]} <= GRADES
    return [
        (*found, group)
        for group in groups
        for found in zip(group["param_names"], group["params"], group["evidence"], strict=True)
    ]


def test_no_name_stands_twice():
    assert len(CASES) == sum(len(group.CASES) for group in GROUPS)


@cases
def test_table_is_complete(name):
    """Each tensor has one entry, each entry a tensor, and each layout fits."""
    case = CASES[name]
    tensors = matrices(case.model())
    for key, tensor in tensors.items():
        _, layout, _ = case.entry(key)
        parts = logical_matrices(layout, tuple(tensor.shape))
        assert sum(index.numel() for index in parts) == tensor.numel(), key
    assert all(any(matches(pattern, key) for key in tensors) for pattern in case.table)


@cases
def test_roles_and_layouts(name):
    case = CASES[name]
    found = findings(case.model())
    wrong = [
        contradiction(case, key, tensor, group["role"], group.get("layout"))
        for key, tensor, _, group in found
        if tensor.numel()
    ]
    assert not any(wrong), "\n".join(line for line in wrong if line)


@cases
def test_centering(name):
    case = CASES[name]
    found = [group for *_, group in findings(case.model())]
    centered = {
        role: {group.get("center", False) for group in found if group["role"] == role}
        for role in case.center
    }
    assert centered == {role: {value} for role, value in case.center.items()}


@cases
def test_conventions_are_recognised(name):
    """All but what is one model's own, and what is left to AdamW."""
    case = CASES[name]
    assumed = [
        key
        for key, tensor, evidence, group in findings(case.model())
        if evidence == "assumed" and group["role"] != "other" and not case.entry(key)[2]
    ]
    assert not assumed


@cases
def test_without_names_nothing_is_another_recognised_role(name):
    case = CASES[name]
    model = case.model()
    entries = {id(p): (key, *case.entry(key)) for key, p in matrices(model).items()}
    hide_names(model)
    wrong = []
    for _, tensor, evidence, group in findings(model):
        if id(tensor) in entries and evidence != "assumed":
            key, roles, _, is_odd = entries[id(tensor)]
            if group["role"] not in (*roles, *(["dense"] if is_odd else [])):
                wrong.append(f"{key}: {evidence} {group['role']}")
    assert not wrong
