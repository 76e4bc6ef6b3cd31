"""What the modelling classes of known families hold: one entry a class, no code a family.

A class of a library tells what its parts are for, and its source tells their order, which stays
when attributes are renamed. So an entry lists the parts in the order in which the class defines
them, each with the shape that the config asks for. A part is taken only if number, order and
shapes all agree; an attribute name that contradicts the order is a reason to refuse, never a
reason to choose. A class that is built in several ways has a block for each.

To add a family, read its modelling file and add its classes to `FAMILIES`; a class that is not
here leaves its matrices undecided.
"""

from .encoders import ENCODERS
from .slots import (
    TRANSPOSE,
    Block,
    Slot,
    attention,
    concatenated_experts,
    dense,
    experts,
    gated_mlp,
    head_dim,
    heads,
    kv_heads,
    labels,
    o_slot,
    router,
    sections,
    sigmoid_router_options,
    softmax_router_options,
    square,
    two_layer_mlp,
    vocabulary,
)

_ATTENTION = attention("q_proj", "k_proj", "v_proj", "o_proj")
_GATED_MLP = gated_mlp("gate_proj", "up_proj", "down_proj")
# Start and end of an answer.
_SPANS = dense("qa_outputs", lambda c: (2, c.hidden_size))
_SOFTMAX_ROUTER = router(softmax_router_options)
_EXPERTS = concatenated_experts(lambda c: c.intermediate_size)
_NARROW_EXPERTS = concatenated_experts(lambda c: c.moe_intermediate_size)


def _shared_experts(width) -> Block:
    return gated_mlp("gate_proj", "up_proj", "down_proj", width)


# gpt-oss: [E, d, 2r], stored [in, out]; gate and up of a unit are neighbours, so that a row of
# the pairs is one unit and its two halves are the gate's and the up's.
_GPT_OSS_EXPERTS = Block(
    parameters=(
        Slot(
            "gate_up_proj",
            "expert_in",
            lambda c: (experts(c), c.hidden_size, 2 * c.intermediate_size),
            lambda c: [TRANSPOSE, {"pairs": "interleaved", "dim": -2}, heads(2, -1)],
        ),
        Slot("gate_up_proj_bias", "other", lambda c: (experts(c), 2 * c.intermediate_size)),
        Slot(
            "down_proj",
            "expert_out",
            lambda c: (experts(c), c.intermediate_size, c.hidden_size),
            lambda c: [TRANSPOSE],
        ),
        Slot("down_proj_bias", "other", lambda c: (experts(c), c.hidden_size)),
    )
)

# Fused queries, keys and values. Whether all queries come first (Phi-3, GPT-2) or each head's or
# group's queries, keys and values stand together (GPT-NeoX, Falcon): heads are of one size, so
# that equal parts of the rows are the heads.


def _fused_heads(config) -> int:
    return config.num_attention_heads + 2 * kv_heads(config)


_PHI3_ATTENTION = Block(
    linears=(
        o_slot("o_proj"),
        Slot(
            "qkv_proj",
            "attention",
            lambda c: (_fused_heads(c) * head_dim(c), c.hidden_size),
            lambda c: [heads(_fused_heads(c), -2)],
        ),
    )
)

_PHI3_MLP = Block(
    linears=(
        Slot(
            "gate_up_proj",
            "mlp_in",
            lambda c: (2 * c.intermediate_size, c.hidden_size),
            lambda c: [heads(2, -2)],
        ),
        Slot("down_proj", "mlp_out", lambda c: (c.hidden_size, c.intermediate_size)),
    )
)


def _joined(name: str, n: int) -> Slot:
    """n square maps one above the other, each with all heads."""
    return Slot(
        name,
        "attention",
        lambda c: (n * c.hidden_size, c.hidden_size),
        lambda c: [heads(n * c.num_attention_heads, -2)],
    )


_GPT2_ATTENTION = Block(linears=(_joined("c_attn", 3), o_slot("c_proj")))
_GPT2_CROSS_ATTENTION = Block(
    linears=(_joined("c_attn", 2), _joined("q_attn", 1), o_slot("c_proj"))
)
_GPT_NEOX_ATTENTION = Block(linears=(_joined("query_key_value", 3), o_slot("dense")))


def _falcon_heads(config) -> int:
    if config.new_decoder_architecture:
        return config.num_attention_heads + 2 * config.num_kv_heads
    return config.num_attention_heads + (
        2 if config.multi_query else 2 * config.num_attention_heads
    )


_FALCON_ATTENTION = Block(
    linears=(
        Slot(
            "query_key_value",
            "attention",
            lambda c: (_falcon_heads(c) * head_dim(c), c.hidden_size),
            lambda c: [heads(_falcon_heads(c), -2)],
        ),
        Slot("dense", "attention", square, lambda c: [heads(c.num_attention_heads, -1)]),
    )
)

# Multi-head latent attention. A query has a part that meets the head's own key and a rotary part
# that meets the one key of all heads; either can be rotated alone, so they are two matrices, as
# are the key and the value that come from one latent.


def _mla_q(name: str, width) -> Slot:
    return Slot(
        name,
        "attention",
        lambda c: (c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), width(c)),
        lambda c: [
            heads(c.num_attention_heads, -2),
            sections(c.qk_nope_head_dim, c.qk_rope_head_dim),
        ],
    )


_MLA_KV = (
    Slot(
        "kv_a_proj_with_mqa",
        "attention",
        lambda c: (c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size),
        lambda c: [sections(c.kv_lora_rank, c.qk_rope_head_dim)],
    ),
    Slot(
        "kv_b_proj",
        "attention",
        lambda c: (c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
        lambda c: [heads(c.num_attention_heads, -2), sections(c.qk_nope_head_dim, c.v_head_dim)],
    ),
    Slot(
        "o_proj",
        "attention",
        lambda c: (c.hidden_size, c.num_attention_heads * c.v_head_dim),
        lambda c: [heads(c.num_attention_heads, -1)],
    ),
)
_MLA = Block(linears=(_mla_q("q_proj", lambda c: c.hidden_size), *_MLA_KV))
_MLA_WITH_LATENT_QUERIES = Block(
    linears=(
        Slot("q_a_proj", "attention", lambda c: (c.q_lora_rank, c.hidden_size)),
        _mla_q("q_b_proj", lambda c: c.q_lora_rank),
        *_MLA_KV,
    )
)

# Mamba's maps act on single channels and states on at least one side; A_log is a table of scalars,
# one for each channel and state.
_MAMBA_MIXER = Block(
    linears=(
        Slot(
            "in_proj",
            "dense",
            lambda c: (2 * c.intermediate_size, c.hidden_size),
            lambda c: [heads(2, -2)],  # the channels and their gates
        ),
        Slot(
            "x_proj",
            "dense",
            lambda c: (int(c.time_step_rank) + 2 * c.state_size, c.intermediate_size),
            lambda c: [sections(int(c.time_step_rank), c.state_size, c.state_size)],
        ),
        Slot("dt_proj", "dense", lambda c: (c.intermediate_size, int(c.time_step_rank))),
        Slot("out_proj", "dense", lambda c: (c.hidden_size, c.intermediate_size)),
    ),
    parameters=(Slot("A_log", "other", lambda c: (c.intermediate_size, c.state_size)),),
)

# Gemma 3 with images. Multiplied from the right: stored [in, out].
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


def _decoder(prefix: str, *mlps: Block) -> dict[str, tuple[Block, ...]]:
    """The classes of a family with separate queries, keys and values, and gated MLPs."""
    return {f"{prefix}Attention": (_ATTENTION,), f"{prefix}MLP": mlps or (_GATED_MLP,)}


def _mixture(prefix: str, stacks: Block) -> dict[str, tuple[Block, ...]]:
    """The classes of its experts, chosen by a softmax."""
    return {f"{prefix}Experts": (stacks,), f"{prefix}TopKRouter": (_SOFTMAX_ROUTER,)}


def _latent(prefix: str, choice: Block) -> dict[str, tuple[Block, ...]]:
    """The classes of a family with latent attention, experts and shared experts."""
    shared = _shared_experts(lambda c: c.moe_intermediate_size * c.n_shared_experts)
    return {
        f"{prefix}Attention": (_MLA, _MLA_WITH_LATENT_QUERIES),
        f"{prefix}MLP": (_GATED_MLP, shared),
        f"{prefix}Experts": (_NARROW_EXPERTS,),
        f"{prefix}TopkRouter": (choice,),
    }


FAMILIES: dict[str, dict[str, tuple[Block, ...]]] = ENCODERS | {
    "llama": _decoder("Llama"),
    "mistral": _decoder("Mistral"),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3"),
    "gemma3": _decoder("Gemma3")
    | {
        "Gemma3MultiModalProjector": (_GEMMA3_PROJECTOR,),
        "Gemma3ForSequenceClassification": (labels("score"),),
    },
    "olmoe": _decoder("Olmoe") | _mixture("Olmoe", _EXPERTS),
    "gpt_oss": _decoder("GptOss") | _mixture("GptOss", _GPT_OSS_EXPERTS),
    "mixtral": _decoder("Mixtral") | _mixture("Mixtral", _EXPERTS),
    "granitemoe": _decoder("GraniteMoe") | _mixture("GraniteMoe", _EXPERTS),
    "qwen2_moe": _decoder(
        "Qwen2Moe", _GATED_MLP, _shared_experts(lambda c: c.shared_expert_intermediate_size)
    )
    | _mixture("Qwen2Moe", _NARROW_EXPERTS)
    | {"Qwen2MoeSparseMoeBlock": (dense("shared_expert_gate", lambda c: (1, c.hidden_size)),)},
    "qwen3_moe": _decoder("Qwen3Moe") | _mixture("Qwen3Moe", _NARROW_EXPERTS),
    "deepseek_v2": _latent("DeepseekV2", _SOFTMAX_ROUTER),
    "deepseek_v3": _latent("DeepseekV3", router(sigmoid_router_options)),
    "phi3": {"Phi3Attention": (_PHI3_ATTENTION,), "Phi3MLP": (_PHI3_MLP,)},
    "gpt2": {
        "GPT2Attention": (_GPT2_ATTENTION, _GPT2_CROSS_ATTENTION),
        "GPT2MLP": (two_layer_mlp("c_fc", "c_proj", lambda c: c.n_inner or 4 * c.hidden_size),),
        "GPT2SequenceSummary": (dense("summary", lambda c: (None, c.hidden_size)),),
        "GPT2ForSequenceClassification": (labels("score"),),
        "GPT2ForTokenClassification": (labels("classifier"),),
        "GPT2ForQuestionAnswering": (_SPANS,),
    },
    "gpt_neox": {
        "GPTNeoXAttention": (_GPT_NEOX_ATTENTION,),
        "GPTNeoXMLP": (two_layer_mlp("dense_h_to_4h", "dense_4h_to_h"),),
        "GPTNeoXForSequenceClassification": (labels("score"),),
        "GPTNeoXForTokenClassification": (labels("classifier"),),
        "GPTNeoXForQuestionAnswering": (_SPANS,),
    },
    "falcon": {
        "FalconAttention": (_FALCON_ATTENTION,),
        "FalconMLP": (
            two_layer_mlp("dense_h_to_4h", "dense_4h_to_h", lambda c: c.ffn_hidden_size),
        ),
        "FalconForSequenceClassification": (labels("score"),),
        "FalconForTokenClassification": (labels("classifier"),),
        "FalconForQuestionAnswering": (_SPANS,),
    },
    "mamba": {"MambaMixer": (_MAMBA_MIXER,)},
}

# Classes that many families inherit from.
_BASES: dict[str, tuple[Block, ...]] = {
    # What makes tokens and defines one linear map onto the vocabulary: that is its head.
    "transformers.generation.utils.GenerationMixin": (vocabulary("lm_head"),),
    "transformers.modeling_layers.GenericForSequenceClassification": (labels("score"),),
    "transformers.modeling_layers.GenericForTokenClassification": (labels("score"),),
    "transformers.modeling_layers.GenericForQuestionAnswering": (_SPANS,),
}

# torch's own layers have no config to compare with.
_TORCH_FEED_FORWARD = Block(
    linears=(Slot("linear1", "mlp_in", None), Slot("linear2", "mlp_out", None))
)

BLOCKS: dict[str, tuple[Block, ...]] = (
    {
        f"transformers.models.{family}.modeling_{family}.{name}": blocks
        for family, classes in FAMILIES.items()
        for name, blocks in classes.items()
    }
    | _BASES
    | {
        "torch.nn.modules.transformer.TransformerEncoderLayer": (_TORCH_FEED_FORWARD,),
        "torch.nn.modules.transformer.TransformerDecoderLayer": (_TORCH_FEED_FORWARD,),
    }
)
