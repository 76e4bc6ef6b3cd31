"""What routing must find in the four architectures, written by hand from their modelling code.

Each table maps a parameter's name ("*" for the layer) to its role, and to its layout if it has
one. Also: how such models are built small, and how their names are taken away.
"""

from itertools import count

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

T = {"transpose": True}

DISTINCT = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
DISTINCT |= dict(num_attention_heads=4, num_key_value_heads=2)
# Every matrix is square and as large as every other, so that no shape tells anything.
SQUARE = dict(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2)
SQUARE |= dict(num_attention_heads=4, num_key_value_heads=4)
SIZES = {"distinct": DISTINCT, "square": SQUARE}
VISION = dict(
    model_type="siglip_vision_model",
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=8,
    patch_size=4,
)


def rows(n):
    return [{"heads": n, "dim": -2}]


def columns(n):
    return [{"heads": n, "dim": -1}]


def attention(heads, kv_heads, prefix="model.layers.*."):
    return {
        f"{prefix}self_attn.q_proj.weight": ("attention", rows(heads)),
        f"{prefix}self_attn.k_proj.weight": ("attention", rows(kv_heads)),
        f"{prefix}self_attn.v_proj.weight": ("attention", rows(kv_heads)),
        f"{prefix}self_attn.o_proj.weight": ("attention", columns(heads)),
    }


GATED_MLP = {
    "model.layers.*.mlp.gate_proj.weight": ("mlp_in",),
    "model.layers.*.mlp.up_proj.weight": ("mlp_in",),
    "model.layers.*.mlp.down_proj.weight": ("mlp_out",),
}
QK_NORMS = {
    "model.layers.*.self_attn.q_norm.weight": ("other",),
    "model.layers.*.self_attn.k_norm.weight": ("other",),
}
NORMS = {
    "model.layers.*.input_layernorm.weight": ("other",),
    "model.layers.*.post_attention_layernorm.weight": ("other",),
    "model.norm.weight": ("other",),
}
EMBEDDING = {"model.embed_tokens.weight": ("embedding",)}
HEAD = {"lm_head.weight": ("lm_head",)}


def qwen3(heads, kv_heads):
    return EMBEDDING | attention(heads, kv_heads) | QK_NORMS | NORMS | GATED_MLP | HEAD


def gemma3(heads, kv_heads):
    more_norms = {
        "model.layers.*.pre_feedforward_layernorm.weight": ("other",),
        "model.layers.*.post_feedforward_layernorm.weight": ("other",),
    }
    return qwen3(heads, kv_heads) | more_norms


def olmoe(heads, kv_heads):
    moe = {
        "model.layers.*.mlp.gate.weight": ("router",),
        "model.layers.*.mlp.experts.gate_up_proj": ("expert_in", rows(2)),
        "model.layers.*.mlp.experts.down_proj": ("expert_out",),
    }
    return EMBEDDING | attention(heads, kv_heads) | QK_NORMS | NORMS | moe | HEAD


def gpt_oss(heads, kv_heads):
    gate_up = [T, {"pairs": "interleaved", "dim": -2}, {"heads": 2, "dim": -1}]
    biases = {
        f"model.layers.*.self_attn.{name}": ("other",)
        for name in ("q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias", "sinks")
    }
    moe = {
        "model.layers.*.mlp.router.weight": ("router",),
        "model.layers.*.mlp.router.bias": ("other",),
        "model.layers.*.mlp.experts.gate_up_proj": ("expert_in", gate_up),
        "model.layers.*.mlp.experts.gate_up_proj_bias": ("other",),
        "model.layers.*.mlp.experts.down_proj": ("expert_out", [T]),
        "model.layers.*.mlp.experts.down_proj_bias": ("other",),
    }
    return EMBEDDING | attention(heads, kv_heads) | biases | NORMS | moe | HEAD


def gemma3_images(heads, kv_heads):
    """The language model's names are the same but for a prefix; the head stays where it is."""
    table = {
        name.replace("model.", "model.language_model.", 1): expected
        for name, expected in gemma3(heads, kv_heads).items()
        if name.startswith("model.")
    }
    layer = "model.vision_tower.encoder.layers.*."
    head = "model.vision_tower.head."
    matrices = {
        "model.vision_tower.embeddings.patch_embedding.weight": ("dense", [{"flatten": True}]),
        "model.vision_tower.embeddings.position_embedding.weight": ("embedding",),
        f"{layer}self_attn.k_proj.weight": ("attention", rows(3)),
        f"{layer}self_attn.v_proj.weight": ("attention", rows(3)),
        f"{layer}self_attn.q_proj.weight": ("attention", rows(3)),
        f"{layer}self_attn.out_proj.weight": ("attention", columns(3)),
        f"{layer}mlp.fc1.weight": ("mlp_in",),
        f"{layer}mlp.fc2.weight": ("mlp_out",),
        f"{head}attention.in_proj_weight": ("attention", rows(9)),
        f"{head}attention.out_proj.weight": ("attention", columns(3)),
        f"{head}mlp.fc1.weight": ("mlp_in",),
        f"{head}mlp.fc2.weight": ("mlp_out",),
        "model.multi_modal_projector.mm_input_projection_weight": ("dense", [T]),
    }
    others = [
        "model.vision_tower.embeddings.patch_embedding.bias",
        "model.vision_tower.post_layernorm.weight",
        "model.vision_tower.post_layernorm.bias",
        "model.multi_modal_projector.mm_soft_emb_norm.weight",
        f"{head}probe",
        f"{head}attention.in_proj_bias",
        f"{head}attention.out_proj.bias",
        f"{head}layernorm.weight",
        f"{head}layernorm.bias",
        f"{head}mlp.fc1.bias",
        f"{head}mlp.fc2.bias",
    ]
    others += [f"{layer}layer_norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    others += [f"{layer}self_attn.{name}.bias" for name in ("k_proj", "v_proj", "q_proj")]
    others += [f"{layer}self_attn.out_proj.bias", f"{layer}mlp.fc1.bias", f"{layer}mlp.fc2.bias"]
    return table | matrices | {name: ("other",) for name in others} | HEAD


TABLES = {
    "qwen3": qwen3,
    "gemma3": gemma3,
    "gemma3_images": gemma3_images,
    "olmoe": olmoe,
    "gpt_oss": gpt_oss,
}


def expected(family, sizes, tied):
    """The family's table with the layers spelt out."""
    size = SIZES[sizes]
    table = TABLES[family](size["num_attention_heads"], size["num_key_value_heads"])
    if tied:
        del table["lm_head.weight"]
    full = {}
    for name, (role, *layout) in table.items():
        for layer in range(size["num_hidden_layers"] if "*" in name else 1):
            full[name.replace("*", str(layer))] = (role, layout[0] if layout else None)
    return full


def build(family, sizes="distinct", tied=False, **config):
    """A small model of the family."""
    torch.manual_seed(0)
    config = SIZES[sizes] | {"tie_word_embeddings": tied} | config
    # Of OLMoE the head size is hidden_size / heads.
    square = sizes == "square"
    head_dim = {"head_dim": 4 if square else 8}
    experts = 16 if square else 6
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**config, **head_dim))
    if family == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**config, **head_dim))
    if family == "gemma3_images":
        text = config | head_dim
        both = Gemma3Config(text_config=text, vision_config=VISION, tie_word_embeddings=tied)
        return Gemma3ForConditionalGeneration(both)
    if family == "olmoe":
        ids = dict(eos_token_id=1, pad_token_id=0)
        return OlmoeForCausalLM(OlmoeConfig(**config, **ids, num_experts=experts))
    return GptOssForCausalLM(GptOssConfig(**config, **head_dim, num_local_experts=experts))


def hide_names(model):
    """Gives every submodule and parameter, and what holds the config, a name without meaning."""
    numbers = count()
    for module in list(model.modules()):
        for held in (module._modules, module._parameters):
            items = list(held.items())
            held.clear()
            held.update({f"x{next(numbers)}": value for _, value in items})
        if "config" in vars(module):
            vars(module)[f"x{next(numbers)}"] = vars(module).pop("config")


def rotate_names(model, step):
    """Gives every submodule and parameter the name of another one of the same module."""
    for module in list(model.modules()):
        for held in (module._modules, module._parameters):
            names, values = list(held), list(held.values())
            held.clear()
            held.update({names[(i + step) % len(names)]: v for i, v in enumerate(values)})
