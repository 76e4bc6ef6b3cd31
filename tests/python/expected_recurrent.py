"""State-space and linear-attention models: what routing must find, by hand from their code.

What several things share is split as finely as the code splits it. Decays, steps and convolutions
channel by channel are "other".
"""

from expected_cases import (
    FREE,
    GROUPED,
    HEAD,
    IDS,
    OTHER,
    TABLE,
    Case,
    from_config,
    heads,
    mlp,
    odd,
    weights,
)
from expected_families import gated, mixture, prefixed, sections
from expected_roles import EMBEDDING, GATED_MLP, T, columns, rows

CENTERED = {"lm_head": True}
SOFTMAX = {"lm_head": True, "router": True}
SIGMOID = {"lm_head": True, "router": False}
LAYER = "model.layers.*."
FIRST, SECOND = "model.layers.0.", "model.layers.1."
DENSE = ("dense",)
LINEAR_ATTENTION = ("attention", "dense")  # it has queries, keys and values, but a state's too


def mamba2_mixer(prefix):
    """Rows: gates, inputs (6 heads of 8), the 2 groups' B, their C, a step for each head."""
    mixer = {
        "in_proj.weight": ("dense", sections(48, 48, 10, 10, 6)),
        "out_proj.weight": DENSE,
        "conv1d.weight": OTHER,
    }
    return prefixed(prefix, mixer)


def mamba2():
    table = weights(TABLE, "backbone.embeddings")
    return table | mamba2_mixer("backbone.layers.*.mixer.") | HEAD


def granite_hybrid():
    """Experts beside an MLP for all tokens, whose gates and ups are one matrix."""
    table = EMBEDDING | mamba2_mixer(f"{FIRST}mamba.") | heads(f"{SECOND}self_attn.", 4, 2) | HEAD
    table |= mixture(f"{LAYER}block_sparse_moe.", "router")
    table |= weights(("mlp_in", rows(2)), f"{LAYER}shared_mlp.input_linear")
    return table | weights(("mlp_out",), f"{LAYER}shared_mlp.output_linear")


def jamba():
    mixer = {
        "A_log": OTHER,
        "conv1d.weight": OTHER,
        "in_proj.weight": ("dense", rows(2)),
        "x_proj.weight": ("dense", sections(3, 5, 5)),
        "dt_proj.weight": DENSE,
        "out_proj.weight": DENSE,
    }
    table = EMBEDDING | prefixed(f"{FIRST}mamba.", mixer) | heads(f"{SECOND}self_attn.", 4, 2)
    return (
        table | gated(f"{FIRST}feed_forward.") | mixture(f"{SECOND}feed_forward.", "router") | HEAD
    )


def gated_heads(prefix):
    """Of each head the query, and then a gate for its output."""
    table = heads(prefix, 4, 2)
    return table | {f"{prefix}q_proj.weight": ("attention", rows(8))}


def delta_net(prefix, inputs):
    """2 heads of queries and of keys, 4 of values, all of 8, as in every released model."""
    table = {f"{prefix}{name}.weight": entry for name, entry in inputs.items()}
    table |= {f"{prefix}out_proj.weight": odd(LINEAR_ATTENTION, columns(4))}
    return table | {f"{prefix}conv1d.weight": OTHER}


def qwen3_next():
    """Rows: query, key, two values and their gates of the first key head, then of the second."""
    inputs = {
        "in_proj_qkvz": (LINEAR_ATTENTION, rows(12)),
        # Two numbers for each value head, which no two heads share.
        "in_proj_ba": odd(LINEAR_ATTENTION, [*rows(2), *sections(2, 2)]),
    }
    table = EMBEDDING | delta_net(f"{FIRST}linear_attn.", inputs) | gated(f"{FIRST}mlp.")
    table |= gated_heads(f"{SECOND}self_attn.") | mixture(f"{SECOND}mlp.", "gate") | HEAD
    table |= gated(f"{SECOND}mlp.shared_expert.")
    return table | {f"{SECOND}mlp.shared_expert_gate.weight": DENSE}


def qwen3_5():
    """Rows: all queries, all keys, all values."""
    inputs = {
        "in_proj_qkv": (LINEAR_ATTENTION, rows(8)),
        "in_proj_z": odd(LINEAR_ATTENTION, rows(4)),
        "in_proj_b": odd(LINEAR_ATTENTION),
        "in_proj_a": odd(LINEAR_ATTENTION),
    }
    table = EMBEDDING | delta_net(f"{FIRST}linear_attn.", inputs)
    return table | gated_heads(f"{SECOND}self_attn.") | GATED_MLP | HEAD


def lfm2(second):
    """Rows of in_proj: B, C and x, which a short convolution and two products join."""
    conv = {"in_proj.weight": ("dense", rows(3)), "out_proj.weight": DENSE, "conv.weight": OTHER}
    attention = heads(f"{SECOND}self_attn.", 4, 2, "q_proj k_proj v_proj out_proj")
    first = mlp(f"{FIRST}feed_forward.", "w1 w3 w2")
    return EMBEDDING | prefixed(f"{FIRST}conv.", conv) | attention | first | second | HEAD


def rwkv():
    """No heads: every channel has its own decay. A gate on the output of the MLP."""
    block = "rwkv.blocks.*."
    mixing = ("time_mix_key", "time_mix_value", "time_mix_receptance")
    table = weights(TABLE, "rwkv.embeddings") | weights(("lm_head",), "head")
    names = ("key", "value", "receptance", "output")
    table |= weights(odd(("attention", "dense")), *(f"{block}attention.{n}" for n in names))
    table |= {f"{block}attention.{name}": OTHER for name in mixing}
    table |= {f"{block}feed_forward.{name}": OTHER for name in mixing[::2]}
    table |= weights(odd("mlp_in"), f"{block}feed_forward.key")
    table |= weights(odd("mlp_out"), f"{block}feed_forward.value")
    return table | weights(odd(), f"{block}feed_forward.receptance")


def recurrent_gemma():
    """Two recurrent layers and one of attention, all called temporal_block.

    The recurrence's gates are four blocks on a diagonal, stored [in, out].
    """
    table = EMBEDDING | HEAD | heads("model.layers.2.temporal_block.", 4, 2)
    table |= gated(f"{LAYER}mlp_block.")
    for layer in range(2):
        block = f"model.layers.{layer}.temporal_block."
        linear = ("linear_x", "linear_y", "linear_out")
        table |= weights(odd(), *(f"{block}{name}" for name in linear))
        table |= weights(OTHER, f"{block}conv_1d")
        for gate in ("input_gate", "recurrent_gate"):
            table |= {
                f"{block}rg_lru.{gate}_weight": odd(("dense", "other"), [T]),
                f"{block}rg_lru.{gate}_bias": OTHER,
            }
    return table


MAMBA2 = dict(vocab_size=56, hidden_size=24, num_hidden_layers=2, num_heads=6, head_dim=8)
MAMBA2 |= dict(state_size=5, n_groups=2, expand=2, tie_word_embeddings=False, **IDS)
GRANITE = GROUPED | dict(
    num_local_experts=5,
    num_experts_per_tok=2,
    shared_intermediate_size=18,
    layer_types=["mamba", "attention"],
    mamba_n_heads=6,
    mamba_d_head=8,
    mamba_d_state=5,
    mamba_n_groups=2,
    mamba_expand=2,
)
JAMBA = GROUPED | dict(
    num_experts=5,
    num_experts_per_tok=2,
    expert_layer_period=2,
    expert_layer_offset=1,
    attn_layer_period=2,
    attn_layer_offset=1,
    mamba_d_state=5,
    mamba_expand=2,
    mamba_dt_rank=3,
)
QWEN = FREE | dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)
EXPERTS = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=14)
NEXT = QWEN | EXPERTS | dict(shared_expert_intermediate_size=18, mlp_only_layers=[0])
LFM2 = GROUPED | dict(layer_types=["conv", "full_attention"])
RWKV = dict(vocab_size=56, hidden_size=24, intermediate_size=40)
RWKV |= dict(num_hidden_layers=2, context_length=20, tie_word_embeddings=False, **IDS)
GEMMA = GROUPED | dict(head_dim=6, lru_width=28, num_hidden_layers=3)
SPARSE = mixture(f"{SECOND}feed_forward.", "gate")

CASES = {
    "mamba2": Case(from_config("Mamba2ForCausalLM", **MAMBA2), mamba2(), CENTERED),
    "granitemoehybrid": Case(
        from_config("GraniteMoeHybridForCausalLM", **GRANITE), granite_hybrid(), SOFTMAX
    ),
    "jamba": Case(from_config("JambaForCausalLM", **JAMBA), jamba(), SOFTMAX),
    "qwen3_next": Case(from_config("Qwen3NextForCausalLM", **NEXT), qwen3_next(), SOFTMAX),
    "qwen3_5": Case(from_config("Qwen3_5ForCausalLM", **QWEN), qwen3_5(), CENTERED),
    "lfm2": Case(
        from_config("Lfm2ForCausalLM", **LFM2, block_auto_adjust_ff_dim=False),
        lfm2(mlp(f"{SECOND}feed_forward.", "w1 w3 w2")),
        CENTERED,
    ),
    "lfm2_moe": Case(
        from_config("Lfm2MoeForCausalLM", **LFM2, **EXPERTS, num_dense_layers=1),
        lfm2(SPARSE),
        SIGMOID,
    ),
    "rwkv": Case(from_config("RwkvForCausalLM", **RWKV), rwkv(), CENTERED),
    # logits_soft_cap: a tanh over the logits, by another name than Gemma's.
    "recurrent_gemma": Case(
        from_config("RecurrentGemmaForCausalLM", **GEMMA), recurrent_gemma(), {"lm_head": False}
    ),
}
