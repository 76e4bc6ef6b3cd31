"""What the modelling classes of known families hold: one entry a class, no code a family.

A class of a library tells what its parts are for, and its source tells their order, which stays
when attributes are renamed. So an entry lists the parts in the order in which the class defines
them, each with the shape that the config asks for. A part is taken only if number, order and
shapes all agree; an attribute name that contradicts the order is a reason to refuse, never a
reason to choose.

To add a family, read its modelling file and add its classes to `FAMILIES`; a class that is not
here leaves its matrices undecided.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TRANSPOSE = {"transpose": True}
FLATTEN = {"flatten": True}


def heads(n: int, dim: int) -> dict:
    """The layout step that makes n equal parts along `dim` a batch."""
    return {"heads": n, "dim": dim}


def _nothing(config) -> Any:
    return None


@dataclass(frozen=True)
class Slot:
    """One part of a modelling class. The functions take the nearest config."""

    name: str  # the attribute in the modelling code
    role: str
    shape: Callable[[Any], tuple[int, ...]] | None  # as stored; [out, in] for every linear map
    layout: Callable[[Any], list | None] = _nothing
    options: Callable[[Any], dict | None] = _nothing  # where they differ from the role's own


@dataclass(frozen=True)
class Block:
    """A modelling class: its linear children and its own tensors of two or more dimensions."""

    linears: tuple[Slot, ...] = ()
    parameters: tuple[Slot, ...] = ()


# Sizes by config


def _text(config):
    """The language part of a composite config; any other config itself."""
    return config.get_text_config()


def _head_dim(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _kv_heads(config) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _q_shape(config):
    return (config.num_attention_heads * _head_dim(config), config.hidden_size)


def _kv_shape(config):
    return (_kv_heads(config) * _head_dim(config), config.hidden_size)


def _o_shape(config):
    return _q_shape(config)[::-1]


def _in_shape(config):
    return (config.intermediate_size, config.hidden_size)


def _out_shape(config):
    return (config.hidden_size, config.intermediate_size)


# When the shared shift is no symmetry

_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_HEAD_Z_LOSSES = ("z_loss_coefficient",)
_ROUTER_Z_LOSSES = ("router_z_loss_coef",)


def _uncentered_if(config, *names: str) -> dict | None:
    return {"center": False} if any(getattr(config, name, None) for name in names) else None


def head_options(config) -> dict | None:
    """No centering where the loss sees a shift that all vocabulary logits share."""
    return _uncentered_if(_text(config), *_SOFT_CAPS, *_HEAD_Z_LOSSES)


def _softmax_router_options(config) -> dict | None:
    return _uncentered_if(config, *_ROUTER_Z_LOSSES)


# Parts that families have in common


def _q(name: str) -> Slot:
    return Slot(name, "attention", _q_shape, lambda c: [heads(c.num_attention_heads, -2)])


def _kv(name: str) -> Slot:
    return Slot(name, "attention", _kv_shape, lambda c: [heads(_kv_heads(c), -2)])


def _o(name: str) -> Slot:
    return Slot(name, "attention", _o_shape, lambda c: [heads(c.num_attention_heads, -1)])


_ATTENTION = Block(linears=(_q("q_proj"), _kv("k_proj"), _kv("v_proj"), _o("o_proj")))

_GATED_MLP = Block(
    linears=(
        Slot("gate_proj", "mlp_in", _in_shape),
        Slot("up_proj", "mlp_in", _in_shape),
        Slot("down_proj", "mlp_out", _out_shape),
    )
)

_TWO_LAYER_MLP = Block(
    linears=(Slot("fc1", "mlp_in", _in_shape), Slot("fc2", "mlp_out", _out_shape))
)

_SOFTMAX_ROUTER = Block(
    parameters=(
        Slot(
            "weight",
            "router",
            lambda c: (c.num_local_experts, c.hidden_size),
            options=_softmax_router_options,
        ),
    )
)

_CAUSAL_LM = Block(
    linears=(
        Slot(
            "lm_head",
            "lm_head",
            lambda c: (_text(c).vocab_size, _text(c).hidden_size),
            options=head_options,
        ),
    )
)

_CLASSIFIER = Block(
    linears=(Slot("score", "dense", lambda c: (c.num_labels, _text(c).hidden_size)),)
)

_QUESTION_ANSWERING = Block(linears=(Slot("qa_outputs", "dense", lambda c: (2, c.hidden_size)),))


# Experts

# [E, 2r, d]: all gates, then all ups.
_OLMOE_EXPERTS = Block(
    parameters=(
        Slot(
            "gate_up_proj",
            "expert_in",
            lambda c: (c.num_local_experts, 2 * c.intermediate_size, c.hidden_size),
            lambda c: [heads(2, -2)],
        ),
        Slot(
            "down_proj",
            "expert_out",
            lambda c: (c.num_local_experts, c.hidden_size, c.intermediate_size),
        ),
    )
)

# [E, d, 2r], stored [in, out]; gate and up of a unit are neighbours, so that a row of the pairs
# is one unit and its two halves are the gate's and the up's.
_GPT_OSS_EXPERTS = Block(
    parameters=(
        Slot(
            "gate_up_proj",
            "expert_in",
            lambda c: (c.num_local_experts, c.hidden_size, 2 * c.intermediate_size),
            lambda c: [TRANSPOSE, {"pairs": "interleaved", "dim": -2}, heads(2, -1)],
        ),
        Slot(
            "gate_up_proj_bias",
            "other",
            lambda c: (c.num_local_experts, 2 * c.intermediate_size),
        ),
        Slot(
            "down_proj",
            "expert_out",
            lambda c: (c.num_local_experts, c.intermediate_size, c.hidden_size),
            lambda c: [TRANSPOSE],
        ),
        Slot("down_proj_bias", "other", lambda c: (c.num_local_experts, c.hidden_size)),
    )
)


# Gemma 3 with images

# Multiplied from the right: stored [in, out].
_GEMMA3_PROJECTOR = Block(
    parameters=(
        Slot(
            "mm_input_projection_weight",
            "dense",
            lambda c: (c.vision_config.hidden_size, c.text_config.hidden_size),
            lambda c: [TRANSPOSE],
        ),
    )
)

_SIGLIP_ATTENTION = Block(linears=(_kv("k_proj"), _kv("v_proj"), _q("q_proj"), _o("out_proj")))

# The probe is one vector, the query of the pooling.
_SIGLIP_POOLING = Block(parameters=(Slot("probe", "other", lambda c: (1, 1, c.hidden_size)),))


FAMILIES: dict[str, dict[str, Block]] = {
    "qwen3": {
        "Qwen3Attention": _ATTENTION,
        "Qwen3MLP": _GATED_MLP,
        "Qwen3ForCausalLM": _CAUSAL_LM,
        "Qwen3ForSequenceClassification": _CLASSIFIER,
        "Qwen3ForTokenClassification": _CLASSIFIER,
        "Qwen3ForQuestionAnswering": _QUESTION_ANSWERING,
    },
    "gemma3": {
        "Gemma3Attention": _ATTENTION,
        "Gemma3MLP": _GATED_MLP,
        "Gemma3ForCausalLM": _CAUSAL_LM,
        "Gemma3ForConditionalGeneration": _CAUSAL_LM,
        "Gemma3MultiModalProjector": _GEMMA3_PROJECTOR,
        "Gemma3ForSequenceClassification": _CLASSIFIER,
        "Gemma3TextForSequenceClassification": _CLASSIFIER,
    },
    "siglip": {  # the vision tower of Gemma 3
        "SiglipAttention": _SIGLIP_ATTENTION,
        "SiglipMLP": _TWO_LAYER_MLP,
        "SiglipMultiheadAttentionPoolingHead": _SIGLIP_POOLING,
    },
    "olmoe": {
        "OlmoeAttention": _ATTENTION,
        "OlmoeExperts": _OLMOE_EXPERTS,
        "OlmoeTopKRouter": _SOFTMAX_ROUTER,
        "OlmoeForCausalLM": _CAUSAL_LM,
    },
    "gpt_oss": {
        "GptOssAttention": _ATTENTION,
        "GptOssExperts": _GPT_OSS_EXPERTS,
        "GptOssTopKRouter": _SOFTMAX_ROUTER,
        "GptOssForCausalLM": _CAUSAL_LM,
        "GptOssForSequenceClassification": _CLASSIFIER,
        "GptOssForTokenClassification": _CLASSIFIER,
    },
}

# torch's own layers have no config to compare with.
_TORCH_FEED_FORWARD = Block(
    linears=(Slot("linear1", "mlp_in", None), Slot("linear2", "mlp_out", None))
)

BLOCKS: dict[str, Block] = {
    f"transformers.models.{family}.modeling_{family}.{name}": block
    for family, classes in FAMILIES.items()
    for name, block in classes.items()
} | {
    "torch.nn.modules.transformer.TransformerEncoderLayer": _TORCH_FEED_FORWARD,
    "torch.nn.modules.transformer.TransformerDecoderLayer": _TORCH_FEED_FORWARD,
}
