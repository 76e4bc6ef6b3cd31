"""Language models with experts: what routing must find, by hand from their modelling code."""

from expected_cases import (
    FREE,
    GROUPED,
    HEAD,
    IDS,
    TABLE,
    Case,
    from_config,
    heads,
    odd,
    weights,
)
from expected_families import gated, mixture
from expected_roles import EMBEDDING, T, columns, rows

# A softmax over the experts does not see a shared shift, a sigmoid of each does.
SOFTMAX = {"lm_head": True, "router": True}
SIGMOID = {"lm_head": True, "router": False}
LAYER = "model.layers.*."
DENSE, SPARSE = "model.layers.0.", "model.layers.1."


def model(moe, attention=None):
    return EMBEDDING | (attention or heads(f"{LAYER}self_attn.", 4, 2)) | moe | HEAD


def gemma4():
    """Beside the experts an MLP; the router is a Linear in a block of its own."""
    moe = gated(f"{LAYER}mlp.") | mixture(LAYER, "router.proj")
    return model(moe)


def llama4():
    """Experts stored [in, out], all gates and then all ups."""
    moe = {
        "experts.gate_up_proj": ("expert_in", [T, *rows(2)]),
        "experts.down_proj": ("expert_out", [T]),
        "router.weight": ("router",),
    }
    moe = {f"{SPARSE}feed_forward.{name}": entry for name, entry in moe.items()}
    moe |= gated(f"{SPARSE}feed_forward.shared_expert.") | gated(f"{DENSE}feed_forward.")
    return model(moe)


def shared_experts():
    """The first layer is dense, the second has experts and a wider one for all tokens."""
    moe = gated(f"{DENSE}mlp.") | mixture(f"{SPARSE}mlp.", "gate")
    return model(moe | gated(f"{SPARSE}mlp.shared_experts."))


def dbrx():
    """All experts in one matrix, rows by rows; w2 is used as it is stored, [in, out]."""
    block = "transformer.blocks.*."
    attention = f"{block}norm_attn_norm.attn."
    experts = {
        "w1": ("expert_in", rows(5)),
        "v1": ("expert_in", rows(5)),
        "w2": ("expert_out", [*rows(5), T]),
    }
    table = weights(TABLE, "transformer.wte")
    table |= weights(("attention", rows(4 + 2 * 2)), f"{attention}Wqkv")
    table |= weights(("attention", columns(4)), f"{attention}out_proj")
    table |= {f"{block}ffn.experts.mlp.{name}": entry for name, entry in experts.items()}
    return table | weights(("router",), f"{block}ffn.router.layer") | HEAD


def minimax():
    """Linear attention in the first layer: query, key and value of one head, then of the next."""
    linear = "model.layers.0.self_attn."
    attention = heads("model.layers.1.self_attn.", 4, 2)
    attention |= weights(("attention", rows(12)), f"{linear}qkv_proj")
    attention |= weights(("attention", columns(4)), f"{linear}out_proj")
    # A gate onto the output, channel by channel of every head.
    attention |= weights(odd("attention", rows(4)), f"{linear}output_gate")
    return model(mixture(f"{LAYER}mlp.", "gate"), attention)


LLAMA4 = FREE | dict(intermediate_size_mlp=44, num_local_experts=5, interleave_moe_layer_step=2)
NARROW = dict(moe_intermediate_size=14, num_experts_per_tok=2)
GLM = dict(n_routed_experts=6, n_shared_experts=2, first_k_dense_replace=1, **NARROW)
ERNIE = dict(moe_num_experts=6, moe_num_shared_experts=2, moe_k=2, moe_intermediate_size=14)
ERNIE |= dict(moe_layer_start_index=1, moe_layer_end_index=1)
DBRX = dict(
    d_model=24,
    n_heads=4,
    n_layers=2,
    max_seq_len=20,
    vocab_size=56,
    attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0),
    ffn_config=dict(ffn_hidden_size=14, moe_num_experts=5, moe_top_k=2, hidden_size=24),
    tie_word_embeddings=False,
    **IDS,
)
MINIMAX = FREE | dict(num_local_experts=5, layer_types=["linear_attention", "full_attention"])
GEMMA4 = FREE | dict(
    layer_types=["sliding_attention", "full_attention"],
    global_head_dim=12,
    hidden_size_per_layer_input=0,
    enable_moe_block=True,
    num_experts=5,
    top_k_experts=2,
    moe_intermediate_size=14,
)

CASES = {
    "gemma4 with experts": Case(from_config("Gemma4ForCausalLM", **GEMMA4), gemma4(), SOFTMAX),
    "llama4": Case(from_config("Llama4ForCausalLM", **LLAMA4), llama4(), SIGMOID),
    "glm4_moe": Case(from_config("Glm4MoeForCausalLM", **FREE, **GLM), shared_experts(), SIGMOID),
    # The bias for balance is added behind the softmax.
    "ernie4_5_moe": Case(
        from_config("Ernie4_5_MoeForCausalLM", **GROUPED, **ERNIE), shared_experts(), SOFTMAX
    ),
    "dbrx": Case(from_config("DbrxForCausalLM", **DBRX), dbrx(), SOFTMAX),
    "minimax": Case(from_config("MiniMaxForCausalLM", **MINIMAX), minimax(), SOFTMAX),
}
