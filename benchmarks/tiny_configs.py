"""Configs of transformers made small: numbers by what they are called, the lists of layers shorter.

Head sizes are no divisors of widths where a config lets one choose, so that what belongs to heads,
neurons and features can be told apart by its length.
"""

import re

HEADS, KV_HEADS, HEAD_DIM, WIDTH, NEURONS, VOCABULARY, EXPERTS = 4, 2, 12, 32, 40, 64, 6

# The first pattern that a name matches as a whole says what its number becomes.
SIZES = [
    (r"num_feat_extract_layers|num_conv_.*", None),
    (r"rotary_dim", 4),
    (r"(.*_)?vocab(ulary)?_size(_.*)?|n_vocab|num_embeddings|codebook_size", VOCABULARY),
    (r"(.*_)?(pad|bos|eos|cls|sep|unk|mask|decoder_start|sos)_token_id|(.*_)?forced_.*_id", 1),
    (r".*_token_id|.*_token_index|.*_token", VOCABULARY - 2),
    (r"(.*_)?(num_key_value_heads|n_kv_heads|num_kv_heads|kv_heads)", KV_HEADS),
    (r"(.*_)?(num_(attention_)?heads|n_heads?|attention_heads|num_.*_heads)", HEADS),
    (r"qk_nope_head_dim|v_head_dim|qk_rope_head_dim|index_head_dim", 8),
    (r"qk_head_dim", 16),
    (r"q_lora_rank", 24),
    (r"kv_lora_rank", 20),
    (r"(.*_)?(head_dim|d_kv|head_size|attention_head_size|key_length)", HEAD_DIM),
    (r"(.*_)?(n_shared_experts|num_shared_experts)", 1),
    (r"(.*_)?(num_experts_per_tok(en)?|num_selected_experts|moe_top_?k|router_top_k|top_k)", 2),
    (r"(.*_)?(n_group|num_expert_groups?|topk_group)", 1),
    (r"(.*_)?(num_(local_|routed_)?experts|n_routed_experts|moe_num_experts)", EXPERTS),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers", 1),
    (r"moe_intermediate_size|.*shared.*intermediate_size|moe_ffn_hidden_size", 20),
    (
        r"(.*_)?(intermediate_size|ffn_dim|n_inner|d_ff|ffn_hidden_size|mlp_dim|.*feedforward.*)",
        NEURONS,
    ),
    (r"(.*_)?(d_inner|mamba_d_inner)", 2 * WIDTH),
    (r"(.*_)?(d_state|state_size|ssm_state_size)", 8),
    (r"(.*_)?(time_step_rank|dt_rank)", 6),
    (
        r"(.*_)?(hidden_size|hidden_dim|d_model|n_embd|embed_dim|width|model_dim|dim|projection_dim"
        r"|embedding_size|emb_dim|word_embed_proj_dim|out_dim|fpn_feature_size|lru_width)",
        WIDTH,
    ),
    (
        r"(.*_)?(num_hidden_layers|n_layers?|num_(encoder_|decoder_|block_)?layers|(encoder|decoder)_layers"
        r"|depth|.*_num_layers|num_.*_layers)",
        2,
    ),
    (r"image_size|img_size|input_size|crop_size", 32),
    (
        r"(.*_)?(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_.*_positions|seq_length)",
        64,
    ),
    (r"(.*_)?(num_queries|num_latents|query_length|num_.*_tokens)", 8),
    (r"sliding_window|attention_window|attention_chunk_size|chunk_size", 8),
    (r"relative_attention_num_buckets|position_buckets", 12),
]


# Labels of layers that are gone, and what is found by itself
LEFT_OUT = ("transformers_version", "architectures", "dtype", "id2label", "label2id")
LEFT_OUT += ("out_features", "out_indices", "_out_features", "_out_indices", "stage_names")


def smaller(config: dict) -> dict:
    """The values of a config, recursively."""
    was = next(
        (
            config[k]
            for k in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
            if isinstance(config.get(k), int)
        ),
        0,
    )
    kinds = next(
        (
            v
            for k, v in config.items()
            if re.fullmatch(r"layer_types|layers_block_type", k)
            and isinstance(v, list)
            and len(v) == was
        ),
        [],
    )
    now = max([kinds.index(kind) for kind in dict.fromkeys(kinds)] + [1]) + 1
    result = {}
    for key, value in config.items():
        if key in LEFT_OUT:
            continue
        if not isinstance(key, str):
            result[key] = value
        elif isinstance(value, dict):
            head = HEAD_DIM if isinstance(config.get("head_dim"), int) else WIDTH // HEADS
            result[key] = small_rope(value, head) if "rope" in key else smaller(value)
        elif key == "conv_dim":
            result[key] = type(value)(WIDTH for _ in value)
        elif key == "vocab_size" and value is None:
            result[key] = VOCABULARY
        elif key == "head_dim" and "qk_rope_head_dim" in config:
            result[key] = 8
        elif key.endswith("head_dim") and "expand" in str(config):
            result[key] = 2 * WIDTH // HEADS
        elif (
            isinstance(value, list) and was and len(value) == was and not isinstance(value[0], dict)
        ):
            result[key] = value[:now]
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, key)), value)
            size = now if size == 2 and value == was and "layer" in key else size
            if re.fullmatch(r".*(key_value_heads|kv_heads)", key):
                size = (
                    HEADS
                    if value == config.get("num_attention_heads")
                    else 1
                    if value == 1
                    else size
                )
            result[key] = value if size is None else min(value, size)
        else:
            result[key] = value
    return result


def small_rope(rope: dict, head: int) -> dict:
    result = dict(rope)
    for key, value in rope.items():
        if key == "mrope_section":
            result[key] = [head // 2 - 2 * (head // 6), head // 6, head // 6]
        elif isinstance(value, dict):
            result[key] = small_rope(value, head)
    return result
