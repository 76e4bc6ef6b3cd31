"""C++ and Python route the same module trees alike: roles, layouts, grades and reasons."""

import warnings

import erlangen
import pytest
import torch
from conftest import CMake
from routing_trees import CHOICES, TREES, build

DEFAULTS = {
    "role": "",
    "rule": "",
    "layout": None,
    "center": False,
    "weight_decay": 0.01,
    "adjust_lr_fn": "match_rms_adamw",
    "update_scale": 1.0,
    "momentum": 0.95,
}


@pytest.fixture(scope="module")
def cpp(cmake_build, tmp_path_factory) -> dict[str, dict]:
    """What the C++ program makes of all trees, in one run of it."""
    folder = tmp_path_factory.mktemp("routing")
    trees = {
        name: [[list(entry) for entry in entries], *CHOICES.get(name, ({}, "match_rms_adamw"))]
        for name, entries in TREES.items()
    }
    torch.save(trees, folder / "trees.pt")
    program = next(p for p in cmake_build.rglob("routing_cases") if p.is_file())
    CMake().run(program, folder / "trees.pt", folder / "found.pt")
    # Our own program's file; LibTorch notes the types of lists, which weights_only does not read.
    return torch.load(folder / "found.pt", weights_only=False)


def routed(name: str) -> dict[str, dict]:
    overrides, adjust_lr_fn = CHOICES.get(name, (None, "match_rms_adamw"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the role of .* is only assumed")
        groups = erlangen.param_groups(
            build(name, TREES[name]), overrides, adjust_lr_fn=adjust_lr_fn
        )
    return {
        name: {
            **{key: group.get(key, default) for key, default in DEFAULTS.items()},
            "evidence": group["evidence"][i],
            "why": group["why"][i],
        }
        for group in groups
        for i, name in enumerate(group["param_names"])
    }


@pytest.mark.parametrize("name", TREES)
def test_same_answer(name, cpp):
    ours, theirs = routed(name), cpp[name]
    assert list(ours) == list(theirs)
    wrong = [
        f"{key}: {what}: {ours[key][what]!r} != {theirs[key][what]!r}"
        for key in ours
        for what in ours[key]
        if ours[key][what] != theirs[key][what]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_trees_show_every_grade_and_role(cpp):
    """All but the roles that no torch.nn module has."""
    found = {(entry["evidence"], entry["role"]) for tree in cpp.values() for entry in tree.values()}
    assert {role for _, role in found} == set(erlangen._C.role_names()) - {"lora"}
    assert {grade for grade, _ in found} == {"declared", "recognised", "assumed"}


def test_a_router_is_centered_beside_a_softmax(cpp):
    for tree, center in (("mixture", False), ("mixture_beside_softmax", True)):
        gate = cpp[tree]["moe.gate.weight"]
        assert (gate["role"], gate["center"]) == ("router", center)


def test_names_alone_promote_nothing(cpp):
    for tree in ("contradictions", "classifier_of_tokens"):
        for name, found in cpp[tree].items():
            if found["role"] not in ("other", "embedding") and "layers" not in name:
                assert (found["role"], found["evidence"]) == ("dense", "assumed"), name


def test_the_end_of_a_chain_may_be_a_head(cpp):
    for tree, name in (("n_gram", "linear2.weight"), ("chain_to_a_head", "fc2.weight")):
        found = cpp[tree][name]
        assert (found["role"], found["evidence"], found["center"]) == ("lm_head", "assumed", False)


def test_lookalikes(cpp):
    found = {name: (of["role"], of["evidence"]) for name, of in cpp["lookalikes"].items()}
    assert found["attention.extra.weight"] == ("dense", "assumed")
    assert found["attention.out_proj.weight"] == ("attention", "declared")
    assert found["attention.holder.scale"] == ("other", "recognised")
    assert found["attention.holder.gain"] == ("other", "assumed")
    assert found["relative_attention_bias.weight"] == ("embedding", "assumed")
    assert found["attention.table.weight"] == ("other", "recognised")


def test_names_say_how_square_stacks_are_stored(cpp):
    for name, role in (("w1_EFD", "expert_in"), ("w3_EFD", "expert_in"), ("w2_EDF", "expert_out")):
        stack = cpp["titan"][f"block.experts.{name}"]
        assert (stack["role"], stack["layout"]) == (role, None)
