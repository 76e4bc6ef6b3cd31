"""Which role, rule and layout each tensor of a model gets."""

import json
import re

import erlangen
import pytest
import torch
import transformers
from erlangen import _C
from erlangen.routing import numbers, param_groups
from erlangen.routing.overrides import ROLES
from expected_families import CASES, build, expected
from expected_roles import SIZES, columns, hide_names, rotate_names, rows
from oracles import Rule, logical_matrices
from routing_helpers import (
    LISTS,
    Holder,
    as_matrices,
    changed_claims,
    found,
    grades,
    groups_of,
    options_by_tensor,
)
from torch import nn

# Whole models

cases = pytest.mark.parametrize("family, tied", CASES)


@cases
@pytest.mark.parametrize("sizes", SIZES)
def test_architecture(family, sizes, tied):
    model = build(family, sizes, tied)
    assert found(model) == expected(family, sizes, tied)


RULES = {"embedding": "row_norm", "lm_head": "row_norm, centered", "other": "adamw"}
RULES |= {"router": "left_spectral, centered"}  # all others: spectral


@cases
@pytest.mark.parametrize("sizes", SIZES)
def test_explain_of_an_architecture(family, sizes, tied):
    model = build(family, sizes, tied)
    roles = expected(family, sizes, tied)
    lines = erlangen.Equivariant(model).explain(full=True).splitlines()
    rows = [re.split(r" {2,}", line) for line in lines]
    head = ["parameter", "shape", "role", "rule", "logical matrices", "update scale", "why"]
    assert rows[0] == head
    shown = {row[0]: row[1:-1] for row in rows[1:]}
    unsure = [row[0] for row in rows[1:] if row[-1].startswith("assumed")]
    assert unsure == []
    assert set(shown) == set(roles)
    for name, parameter in model.named_parameters():
        role, layout = roles[name]
        rule = RULES.get(role, "spectral")
        if role == "router" and "deepseek_v3" in family:  # its scores are sigmoids
            rule = "left_spectral"
        matrices, scales = "-", [1.0]
        if rule != "adamw":
            matrices, scales = described(layout, tuple(parameter.shape), rule.split(",")[0])
        factor = 5.0 if role == "embedding" else 1.0
        scale = " + ".join(f"{scale * factor:.4g}" for scale in scales)
        shape = "×".join(map(str, parameter.shape))
        assert shown[name] == [shape, role, rule, matrices, scale], name


def described(layout, shape, rule):
    """The logical matrices in words, and their scales: one of each for every section."""
    parts = logical_matrices(layout, shape)
    last = layout[-1] if layout else {}
    n = len(last.get("sections", [None]))
    words, scales = [], []
    for matrices in (parts[i::n] for i in range(n)):
        size = "×".join(map(str, matrices[0].shape))
        words.append(size if len(matrices) == 1 else f"{len(matrices)} of {size}")
        scales.append(Rule(rule, adjust_lr_fn="match_rms_adamw").scale(*matrices[0].shape))
    return " + ".join(words), scales


@cases
@pytest.mark.parametrize("sizes", SIZES)
def test_without_names_no_other_role_is_claimed(family, sizes, tied):
    model = build(family, sizes, tied)
    before = options_by_tensor(model)
    hide_names(model)
    assert not any("proj" in name or "embed" in name for name, _ in model.named_parameters())
    assert not changed_claims(before, options_by_tensor(model))


@pytest.mark.parametrize("step", [1, 2, 3])
@cases
@pytest.mark.parametrize("sizes", SIZES)
def test_misleading_names_claim_no_other_role(family, sizes, tied, step):
    model = build(family, sizes, tied)
    before = options_by_tensor(model)
    rotate_names(model, step)
    assert not changed_claims(before, options_by_tensor(model))


def test_rules_of_the_roles():
    groups = param_groups(build("olmoe"))
    rules = {group["role"]: (group["rule"], group.get("center", False)) for group in groups}
    assert rules == {
        "embedding": ("row_norm", False),
        "attention": ("spectral", False),
        "other": ("adamw", False),
        "router": ("left_spectral", True),
        "expert_in": ("spectral", False),
        "expert_out": ("spectral", False),
        "lm_head": ("row_norm", True),
    }
    for group in groups:
        if group["role"] in ("embedding", "lm_head", "router", "other"):
            assert group["weight_decay"] == 0.0
    assert next(g for g in groups if g["role"] == "embedding")["update_scale"] == 5.0


def test_groups_are_plain_complete_and_ordered():
    model = build("gpt_oss")
    groups = param_groups(model)
    names = dict(model.named_parameters())
    listed = [name for group in groups for name in group["param_names"]]
    assert sorted(listed) == sorted(names)
    order = list(names)
    assert [g["param_names"][0] for g in groups] == sorted(
        (g["param_names"][0] for g in groups), key=order.index
    )
    for group in groups:
        assert group["param_names"] == sorted(group["param_names"], key=order.index)
        assert len(group["evidence"]) == len(group["why"]) == len(group["params"])
        assert all(
            names[n] is p for n, p in zip(group["param_names"], group["params"], strict=True)
        )
        plain = {k: v for k, v in group.items() if k != "params"}
        assert json.loads(json.dumps(plain)) == plain
    keys = [json.dumps({k: v for k, v in g.items() if k not in LISTS}) for g in groups]
    assert len(set(keys)) == len(keys)


def test_every_role_has_options():
    assert all("rule" in _C.role_options(role, "match_rms_adamw") for role in ROLES)


def test_gpt_oss_layouts_are_the_maps_of_the_forward_pass():
    experts = build("gpt_oss").model.layers[0].mlp.experts
    layouts = {name: layout for name, (_, layout) in found(build("gpt_oss")).items()}
    weight = experts.gate_up_proj.detach()
    gate, up = (weight[..., i::2] for i in (0, 1))  # as in _apply_gate: x @ weight, then ::2
    matrices = as_matrices(weight, layouts["model.layers.0.mlp.experts.gate_up_proj"])
    assert torch.equal(matrices, torch.stack([gate.mT, up.mT], dim=1))
    down = experts.down_proj.detach()
    assert torch.equal(as_matrices(down, layouts["model.layers.0.mlp.experts.down_proj"]), down.mT)


# Of the models that are no language models: the linear maps that a task adds, by hand.
SCORE, CLASSIFIER, SPANS = ["score.weight"], ["classifier.weight"], ["qa_outputs.weight"]
TASKS = {
    "Qwen3ForSequenceClassification": ("qwen3", SCORE),
    "Qwen3ForTokenClassification": ("qwen3", SCORE),
    "Qwen3ForQuestionAnswering": ("qwen3", SPANS),
    "Gemma3TextForSequenceClassification": ("gemma3", SCORE),
    "Gemma3ForSequenceClassification": ("gemma3_images", SCORE),
    "GptOssForSequenceClassification": ("gpt_oss", SCORE),
    "MixtralForSequenceClassification": ("mixtral", SCORE),
    "GPT2ForSequenceClassification": ("gpt2", SCORE),
    "GPT2ForTokenClassification": ("gpt2", CLASSIFIER),
    "GPT2ForQuestionAnswering": ("gpt2", SPANS),
    "GPT2DoubleHeadsModel": ("gpt2", ["multiple_choice_head.summary.weight"]),
    "GPTNeoXForSequenceClassification": ("gpt_neox", SCORE),
    "GPTNeoXForTokenClassification": ("gpt_neox", CLASSIFIER),
    "GPTNeoXForQuestionAnswering": ("gpt_neox", SPANS),
    "FalconForSequenceClassification": ("falcon", SCORE),
    "FalconForTokenClassification": ("falcon", CLASSIFIER),
    "FalconForQuestionAnswering": ("falcon", SPANS),
    "T5ForSequenceClassification": (
        "t5",
        ["classification_head.dense.weight", "classification_head.out_proj.weight"],
    ),
    "T5ForTokenClassification": ("t5", CLASSIFIER),
    "T5ForQuestionAnswering": ("t5", SPANS),
    "BertForSequenceClassification": ("bert", ["bert.pooler.dense.weight", *CLASSIFIER]),
    "BertForMultipleChoice": ("bert", ["bert.pooler.dense.weight", *CLASSIFIER]),
    "BertForNextSentencePrediction": (
        "bert",
        ["bert.pooler.dense.weight", "cls.seq_relationship.weight"],
    ),
    "BertForTokenClassification": ("bert", CLASSIFIER),
    "BertForQuestionAnswering": ("bert", SPANS),
}


@pytest.mark.parametrize("name", TASKS)
def test_maps_onto_labels_are_dense(name):
    family, maps = TASKS[name]
    with torch.device("meta"):
        config = build(family, tied=True).config
        config.num_labels = 2 if name == "T5ForQuestionAnswering" else 3
        model = getattr(transformers, name)(config)
    roles = found(model)
    of_images = 2 if family == "gemma3_images" else 0
    assert sum(role == "dense" for role, _ in roles.values()) == of_images + len(maps)
    assert all(roles[key] == ("dense", None) for key in maps)
    before = options_by_tensor(model)
    hide_names(model)
    assert not changed_claims(before, options_by_tensor(model))


def test_a_part_of_a_model():
    model = build("qwen3")
    assert found(model.model.layers[0].self_attn)["o_proj.weight"] == ("attention", columns(4))
    assert found(model.model)["embed_tokens.weight"] == ("embedding", None)


def test_meta_device():
    with torch.device("meta"):
        for tied in (False, True):
            assert found(build("olmoe", tied=tied)) == expected("olmoe", "distinct", tied)


def test_shapes_that_contradict_the_config():
    """Three heads of keys cannot serve four of queries: nothing is claimed about heads."""
    model = build("qwen3")
    model.model.layers[1].self_attn.k_proj = nn.Linear(16, 24, bias=False)
    roles = found(model)
    assert roles["model.layers.0.self_attn.k_proj.weight"] == ("attention", rows(2))
    for name in ("k_proj", "v_proj"):
        assert roles[f"model.layers.1.self_attn.{name}.weight"][1] is None


@pytest.mark.parametrize(
    "family, change, name",
    [
        ("falcon", {"num_attention_heads": 3}, "transformer.h.0.self_attention.dense.weight"),
        ("deepseek_v3", {"v_head_dim": 6}, "model.layers.0.self_attn.kv_b_proj.weight"),
        ("mamba", {"time_step_rank": 4}, "backbone.layers.0.mixer.x_proj.weight"),
    ],
)
def test_configs_that_contradict_the_shapes(family, change, name):
    """Head counts and parts come from numbers: ones that are not the model's must not be used."""
    with torch.device("meta"):
        model = build(family)
    assert found(model)[name][1] is not None
    for key, value in change.items():
        setattr(model.config, key, value)
        for module in model.modules():
            for attribute in numbers.NAMES["heads"] if "heads" in key else (key,):
                if hasattr(module, attribute):
                    setattr(module, attribute, value)
    layout = found(model)[name][1]
    assert layout is None or not any("sections" in step or "heads" in step for step in layout)


def test_replaced_and_added_parts():
    model = build("qwen3")
    model.model.layers[0].mlp.extra = nn.Linear(16, 16)
    with pytest.warns(UserWarning, match=r"mlp\.extra\.weight \[16, 16\]: dense"):
        groups = param_groups(model)
    grade = {n: e for g in groups for n, e in zip(g["param_names"], g["evidence"], strict=True)}
    assert [name for name, e in grade.items() if e == "assumed"] == [
        "model.layers.0.mlp.extra.weight"
    ]


# When centering is right


def test_soft_capped_head_is_not_centered():
    model = build("gemma3", final_logit_softcapping=30.0)
    head = next(g for g in param_groups(model) if g["role"] == "lm_head")
    assert head["rule"] == "row_norm" and head["center"] is False


def test_router_with_z_loss_is_not_centered():
    model = build("olmoe")
    model.config.router_z_loss_coef = 1e-3
    router = next(g for g in param_groups(model) if g["role"] == "router")
    assert router["rule"] == "left_spectral" and router["center"] is False


# Sharing


@pytest.mark.parametrize("family", [family for family, tied in CASES if tied])
def test_tied_head_is_an_embedding_without_centering(family):
    model = build(family, tied=True)
    groups = param_groups(model)
    head = model.get_output_embeddings().weight
    holders = [g for g in groups if any(p is head for p in g["params"])]
    assert [g["role"] for g in holders] == ["embedding"]
    assert not holders[0].get("center", False)


def test_declared_tie_that_the_model_does_not_have():
    model = build("qwen3", tied=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        groups = param_groups(model)
    head = next(g for g in groups if "lm_head.weight" in g["param_names"])
    assert head["role"] == "lm_head" and head["center"] is False
    model.config.tie_word_embeddings = False
    assert found(model)["lm_head.weight"] == ("lm_head", None)


def test_declared_tie_with_the_embedding_elsewhere():
    model = build("qwen3", tied=True)
    model.model.embed_tokens = nn.Identity()  # the last stage of a pipeline
    assert found(model)["lm_head.weight"] == ("embedding", None)


def test_plain_tied_model():
    model = Holder(table=nn.Embedding(30, 8), head=nn.Linear(8, 30))
    model.head.weight = model.table.weight
    assert found(model) == {"table.weight": ("embedding", None), "head.bias": ("other", None)}


def test_shared_by_modules_that_disagree():
    shared = nn.Parameter(torch.zeros(8, 8))
    model = Holder(a=nn.RNN(8, 8), b=nn.LSTM(8, 2))
    model.a.weight_ih_l0 = model.b.weight_ih_l0 = shared
    with pytest.warns(UserWarning, match="make different things of it|part it differently"):
        groups = param_groups(model)
    group = next(g for g in groups if any(p is shared for p in g["params"]))
    assert group["role"] == "dense" and "layout" not in group


# Heads of models without a config


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.gated = Holder(w1=nn.Linear(d, 4 * d), w2=nn.Linear(4 * d, d), w3=nn.Linear(d, 4 * d))


def language_model(vocabulary, d=8):
    return Holder(
        tokens=nn.Embedding(vocabulary, d),
        positions=nn.Embedding(d, d),
        blocks=nn.ModuleList([Block(d), Block(d)]),
        head=nn.Linear(d, vocabulary, bias=False),
    )


@pytest.mark.parametrize("vocabulary", [50, 32], ids=["usual", "as wide as the MLP"])
def test_plain_head(vocabulary):
    model = language_model(vocabulary)
    roles = found(model)
    assert roles["head.weight"] == ("lm_head", None)
    assert grades(model)["head.weight"] == "assumed"
    assert not next(g for g in groups_of(model) if g["role"] == "lm_head")["center"]
    assert roles["tokens.weight"] == roles["positions.weight"] == ("embedding", None)
    inner = [
        role for name, (role, _) in roles.items() if name.endswith("weight") and "blocks" in name
    ]
    assert sorted(inner) == sorted(
        2 * (2 * ["mlp_in"] + ["mlp_out"] + ["mlp_in", "mlp_out", "other"])
    )
    before = options_by_tensor(model)
    hide_names(model)
    assert not changed_claims(before, options_by_tensor(model))


def test_a_head_by_its_name_and_its_table():
    model = Holder(
        tok_embeddings=nn.Embedding(50, 8), body=nn.Linear(8, 8), output=nn.Linear(8, 50)
    )
    head = next(g for g in groups_of(model) if g["role"] == "lm_head")
    assert head["evidence"] == ["recognised"] and head["center"] is True
    model.output = nn.Linear(8, 64)  # padded
    assert found(model)["output.weight"][0] == "lm_head"
    model.output = nn.Linear(8, 49)  # of something else
    assert found(model)["output.weight"][0] == "dense"


def test_no_head_by_shape_alone_but_the_last():
    early = Holder(head=nn.Linear(8, 50), tokens=nn.Embedding(50, 8), body=nn.Linear(8, 8))
    square = Holder(tokens=nn.Embedding(8, 8), head=nn.Linear(8, 8))
    labels = Holder(tokens=nn.Embedding(50, 8), kinds=nn.Embedding(4, 8), scores=nn.Linear(8, 4))
    for model in (early, square, labels):
        assert all(role != "lm_head" for role, _ in found(model).values())
    assert (
        found(early, overrides={"head.weight": {"role": "lm_head"}})["head.weight"][0] == "lm_head"
    )


def test_own_head_on_a_known_body():
    body = build("qwen3").model
    model = Holder(body=body, head=nn.Linear(16, 40, bias=False))
    assert found(model)["head.weight"] == ("lm_head", None)
    model = Holder(body=body, value=nn.Linear(16, 1))
    assert found(model)["value.weight"] == ("dense", None)


def test_tables_of_experts_are_no_routers():
    """The class that Doge records as its router holds the experts too, as tables of vectors."""
    from transformers import DogeConfig, DogeForCausalLM

    config = DogeConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        is_moe=True,
        num_experts=16,
        num_experts_per_tok=4,
    )
    roles = found(DogeForCausalLM(config))
    for name in ("down_embed", "up_embed"):
        assert roles[f"model.layers.0.mlp.{name}.weight"] == ("embedding", None)
    assert "router" not in {role for role, _ in roles.values()}
