"""Language models without experts: what routing must find, by hand from their modelling code."""

from expected_cases import (
    BASE,
    FREE,
    GPT,
    GROUPED,
    HEAD,
    IDS,
    TABLE,
    Case,
    from_config,
    heads,
    mlp,
    odd,
    weights,
)
from expected_roles import EMBEDDING, GATED_MLP, columns, rows

CENTERED = {"lm_head": True}
CAPPED = {"lm_head": False}  # a tanh over the logits
LAYER = "model.layers.*."


def llama(queries=4, keys=2):
    return EMBEDDING | heads(f"{LAYER}self_attn.", queries, keys) | GATED_MLP | HEAD


def glm4():
    """All gates and then all ups, as chunk takes them apart."""
    fused = {f"{LAYER}mlp.gate_up_proj.weight": ("mlp_in", rows(2))}
    fused |= {f"{LAYER}mlp.down_proj.weight": ("mlp_out",)}
    return EMBEDDING | heads(f"{LAYER}self_attn.", 4, 2) | fused | HEAD


def phi():
    attention = heads(f"{LAYER}self_attn.", 4, 2, "q_proj k_proj v_proj dense")
    return EMBEDDING | attention | mlp(f"{LAYER}mlp.", "fc1 fc2") | HEAD


def gptj():
    layer = "transformer.h.*."
    table = weights(TABLE, "transformer.wte")
    table |= heads(f"{layer}attn.", 4, names="q_proj k_proj v_proj out_proj")
    return table | mlp(f"{layer}mlp.", "fc_in fc_out") | HEAD


def fused(prefix, embedding, names, qkv=12):
    """Whole heads of queries, keys and values in one tensor, in whatever order."""
    into, out, first, second = names.split()
    table = weights(TABLE, embedding)
    table |= weights(("attention", rows(qkv)), f"{prefix}{into}")
    table |= weights(("attention", columns(4)), f"{prefix}{out}")
    return table | mlp(prefix, f"{first} {second}") | HEAD


def bloom():
    """Rows: query, key and value of the first head, then of the second, ..."""
    attention = "self_attention.query_key_value self_attention.dense"
    names = f"{attention} mlp.dense_h_to_4h mlp.dense_4h_to_h"
    return fused("transformer.h.*.", "transformer.word_embeddings", names)


def mpt():
    """Rows: all queries, all keys, all values. An MLP without a gate, though it says up_proj."""
    names = "attn.Wqkv attn.out_proj ffn.up_proj ffn.down_proj"
    return fused("transformer.blocks.*.", "transformer.wte", names)


def codegen():
    """Rows: queries, values and keys of a quarter of the heads, then of the next quarter."""
    names = "attn.qkv_proj attn.out_proj mlp.fc_in mlp.fc_out"
    return fused("transformer.h.*.", "transformer.wte", names)


def big_code():
    """Four queries with one key and one value; Linear, though it has the names of GPT-2."""
    names = "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"
    table = fused("transformer.h.*.", "transformer.wte", names, qkv=6)
    return table | weights(TABLE, "transformer.wpe")


def opt():
    """Tokens narrower than the model: two maps between the widths, and a narrow head."""
    layer = "model.decoder.layers.*."
    table = weights(TABLE, "model.decoder.embed_tokens", "model.decoder.embed_positions")
    table |= weights(odd(), "model.decoder.project_in", "model.decoder.project_out")
    table |= heads(f"{layer}self_attn.", 4, names="q_proj k_proj v_proj out_proj")
    return table | mlp(layer, "fc1 fc2") | HEAD


def per_layer(layers):
    """A second table, with a vector a layer for each token.

    The gate onto it multiplies by what the table says: its rows are no neurons of the layer's own.
    """
    table = weights(TABLE, "model.embed_tokens_per_layer")
    table |= weights(odd(), f"{LAYER}per_layer_input_gate", f"{LAYER}per_layer_projection")
    return table | weights(odd(layout=rows(layers)), "model.per_layer_model_projection")


def gemma4():
    """Heads of 8 in sliding layers and of 12 in full ones, which take their keys as values."""
    attention = heads("model.layers.0.self_attn.", 4, 2) | heads("model.layers.1.self_attn.", 4, 1)
    del attention["model.layers.1.self_attn.v_proj.weight"]
    return EMBEDDING | attention | GATED_MLP | HEAD | per_layer(2)


def gemma4_shared():
    """The last two of four layers take keys and values of the first two, and have wider MLPs."""
    table = EMBEDDING | GATED_MLP | HEAD | per_layer(4)
    for layer in range(4):
        attention = heads(f"model.layers.{layer}.self_attn.", 4, 2)
        names = ("q_proj", "o_proj") if layer > 1 else ("q_proj", "k_proj", "v_proj", "o_proj")
        table |= {k: v for k, v in attention.items() if k.split(".")[-2] in names}
    return table


PER_LAYER = dict(hidden_size_per_layer_input=6, vocab_size_per_layer_input=48)
GEMMA4 = FREE | dict(
    layer_types=["sliding_attention", "full_attention"],
    global_head_dim=12,
    num_global_key_value_heads=1,
    attention_k_eq_v=True,
    **PER_LAYER,
)
GEMMA4_SHARED = FREE | dict(
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_hidden_layers=4,
    global_head_dim=12,
    num_kv_shared_layers=2,
    use_double_wide_mlp=True,
    **PER_LAYER,
)
PHI = GROUPED | dict(hidden_size=32)  # half of a head is rotated, in pairs
MPT = dict(vocab_size=56, d_model=24, n_layers=2, n_heads=4, tie_word_embeddings=False)
BLOOM = dict(vocab_size=56, hidden_size=24, n_layer=2, n_head=4, tie_word_embeddings=False, **IDS)
OPT = BASE | dict(ffn_dim=40, word_embed_proj_dim=12, max_position_embeddings=20)
del OPT["intermediate_size"]

CASES = {
    "gemma2": Case(from_config("Gemma2ForCausalLM", **FREE), llama(), CAPPED),
    "gemma4": Case(from_config("Gemma4ForCausalLM", **GEMMA4), gemma4(), CENTERED),
    "gemma4 with shared keys": Case(
        from_config("Gemma4ForCausalLM", **GEMMA4_SHARED), gemma4_shared(), CENTERED
    ),
    "glm4": Case(from_config("Glm4ForCausalLM", **FREE), glm4(), CENTERED),
    "phi": Case(from_config("PhiForCausalLM", **PHI), phi(), CENTERED),
    # Norms of each head: vectors all of them.
    "stablelm": Case(
        from_config("StableLmForCausalLM", **GROUPED, qk_layernorm=True), llama(), CENTERED
    ),
    "smollm3": Case(from_config("SmolLM3ForCausalLM", **GROUPED), llama(), CENTERED),
    "gptj": Case(from_config("GPTJForCausalLM", **GPT, rotary_dim=4), gptj(), CENTERED),
    "bloom": Case(from_config("BloomForCausalLM", **BLOOM), bloom(), CENTERED),
    "mpt": Case(from_config("MptForCausalLM", **MPT), mpt(), CENTERED),
    "codegen": Case(from_config("CodeGenForCausalLM", **GPT, rotary_dim=4), codegen(), CENTERED),
    "gpt_bigcode": Case(from_config("GPTBigCodeForCausalLM", **GPT), big_code(), CENTERED),
    "opt": Case(from_config("OPTForCausalLM", **OPT), opt(), CENTERED),
    "cohere2": Case(from_config("Cohere2ForCausalLM", **FREE), llama(), CENTERED),
    "olmo2": Case(from_config("Olmo2ForCausalLM", **GROUPED), llama(), CENTERED),
}
