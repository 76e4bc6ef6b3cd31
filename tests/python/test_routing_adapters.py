"""Low-rank adapters of peft: what they add, and what they wrap."""

import peft
import pytest
from erlangen.routing import param_groups
from expected_families import build, expected
from expected_roles import columns, hide_names, rows
from routing_helpers import Holder, changed_claims, found, grades, options_by_tensor
from torch import nn


def adapted(model, *targets, **config):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=[*targets], r=3, **config))


TARGETS = {
    "llama": ("q_proj", "down_proj"),
    "gpt2": ("c_attn", "wte"),
    "gpt_neox": ("query_key_value",),
    "deepseek_v3": ("q_b_proj", "kv_b_proj"),
    "mamba": ("in_proj", "x_proj"),
    "t5": ("q", "wo"),
    "bert": ("query",),
    "vit": ("q_proj", "projection"),
}
families = pytest.mark.parametrize("family", TARGETS)


def base_name(name):
    """The name before the model was wrapped."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
@families
@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters(family, use_dora):
    """With everything else frozen only adapters are left: two matrices each, and DoRA's lengths."""
    model = adapted(build(family, tied=family == "t5"), *TARGETS[family], use_dora=use_dora)
    roles = found(model)
    assert len(roles) >= 2
    for name, role in roles.items():
        assert role == ("other" if "magnitude" in name else "lora", None), name
    lora = next(g for g in param_groups(model) if g["role"] == "lora")
    assert lora["rule"] == "adamw"
    before = options_by_tensor(model)
    hide_names(model)
    assert not changed_claims(before, options_by_tensor(model))


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
@families
def test_what_is_adapted_keeps_its_role(family):
    tied = family == "t5"
    model = adapted(build(family, tied=tied), *TARGETS[family])
    for p in model.parameters():
        p.requires_grad_(True)
    roles = {base_name(k): v for k, v in found(model).items() if "lora" not in k}
    assert roles == expected(family, tied=tied)


def test_modules_that_are_trained_whole():
    model = adapted(build("llama"), "q_proj", modules_to_save=["o_proj", "lm_head", "embed_tokens"])
    roles = {k: v for k, v in found(model).items() if "lora" not in k}
    copy = "modules_to_save.default.weight"
    layer = "base_model.model.model.layers"
    assert roles == {
        f"base_model.model.model.embed_tokens.{copy}": ("embedding", None),
        f"{layer}.0.self_attn.o_proj.{copy}": ("attention", columns(4)),
        f"{layer}.1.self_attn.o_proj.{copy}": ("attention", columns(4)),
        f"base_model.model.lm_head.{copy}": ("lm_head", None),
    }


def test_experts_with_adapters():
    target = ["experts.gate_up_proj"]
    model = adapted(build("mixtral"), target_parameters=target)
    assert set(found(model).values()) == {("lora", None)}


def test_adapters_in_a_class_of_the_users_own():
    own = Holder(
        tokens=nn.Embedding(30, 8),
        inner=nn.Linear(8, 8, bias=False),
        attention=nn.MultiheadAttention(8, 2, bias=False),
        head=nn.Linear(8, 30, bias=False),
    )
    model = adapted(own, "inner", "head")
    for p in model.parameters():
        p.requires_grad_(True)
    roles = {base_name(k): v for k, v in found(model).items() if "lora" not in k}
    assert roles == {
        "tokens.weight": ("embedding", None),
        "inner.weight": ("dense", None),
        "attention.in_proj_weight": ("attention", rows(6)),
        "attention.out_proj.weight": ("attention", columns(2)),
        "head.weight": ("lm_head", None),
    }


def test_attention_of_torch_with_adapters():
    own = Holder(attention=nn.MultiheadAttention(8, 2), inner=nn.Linear(8, 8))
    model = adapted(own, "attention", "inner")
    assert set(found(model).values()) == {("lora", None)}


@pytest.mark.parametrize(
    "config, named",
    [
        (
            peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
            r"q_proj\.ia3_l\.default \[32, 1\]",
        ),
        (
            peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
            None,
        ),
        (
            peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2]),
            r"trainable_tokens_delta\.default \[2, 16\]",
        ),
    ],
    ids=["ia3", "prefix", "single tokens"],
)
def test_other_adapters_are_assumed(config, named):
    model = peft.get_peft_model(build("llama"), config)
    if named is None:
        assert set(grades(model).values()) == {"declared"}
        return
    with pytest.warns(UserWarning, match=named) as warned:
        param_groups(model)
    assert "overrides={" in str(warned[0].message)
