"""Models of which each breaks a habit of the others, by hand from their modelling code."""

from expected_cases import (
    BASE,
    CONV,
    FREE,
    GROUPED,
    HEAD,
    IDS,
    OTHER,
    PATCHES,
    TABLE,
    Case,
    from_config,
    heads,
    mlp,
    odd,
    weights,
)
from expected_families import FLAT, gated, mixture, prefixed, sections
from expected_recurrent import mamba2_mixer
from expected_roles import EMBEDDING, GATED_MLP, T, columns, rows
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SamConfig,
    SamModel,
)

CENTERED, CAPPED = {"lm_head": True}, {"lm_head": False}
SOFTMAX = {"lm_head": True, "router": True}
SIGMOID = {"lm_head": True, "router": False}
LAYER = "model.layers.*."
FIRST, SECOND = "model.layers.0.", "model.layers.1."


def latent(prefix, full_queries=False):
    """Keys and values through 10 numbers; of each head 6 rows without rotation and 4 with."""
    queries = ("attention", [*rows(4), *sections(6, 4)])
    table = {
        "kv_a_proj_with_mqa.weight": ("attention", sections(10, 4)),
        "kv_b_proj.weight": ("attention", [*rows(4), *sections(6, 8)]),
        "o_proj.weight": ("attention", columns(4)),
    }
    if full_queries:
        table |= {"q_proj.weight": queries}
    else:
        table |= {"q_a_proj.weight": ("attention",), "q_b_proj.weight": queries}
    return prefixed(prefix, table)


def shared_experts():
    moe = gated(f"{FIRST}mlp.") | mixture(f"{SECOND}mlp.", "gate")
    return moe | gated(f"{SECOND}mlp.shared_experts.")


def glm4_moe_lite():
    return EMBEDDING | latent(f"{LAYER}self_attn.") | shared_experts() | HEAD


def kimi_linear():
    """Three heads in the linear layer, four in the other. Gates through a narrow middle."""
    linear = f"{FIRST}self_attn."
    table = EMBEDDING | heads(linear, 3) | latent(f"{SECOND}self_attn.", full_queries=True)
    table |= weights(OTHER, f"{linear}conv1d") | {f"{linear}forget_gate.A_log": OTHER}
    table |= weights(odd(), f"{linear}b_proj", f"{linear}g_a_proj", f"{linear}forget_gate.f_a_proj")
    per_head = odd(("attention", "dense"), rows(3))
    table |= weights(per_head, f"{linear}g_b_proj", f"{linear}forget_gate.f_b_proj")
    return table | shared_experts() | HEAD


def longcat():
    """Two attentions and two MLPs in a layer; two experts that do nothing have a router's row.

    They have a gate and up, but no down.
    """
    table = EMBEDDING | latent(f"{LAYER}self_attn.*.") | gated(f"{LAYER}mlps.*.") | HEAD
    experts = {
        "experts.gate_up_proj": ("expert_in", rows(2)),
        "experts.down_proj": ("expert_out",),
        "router.classifier.weight": ("router",),
    }
    return table | prefixed(f"{LAYER}mlp.", experts)


def jetmoe():
    """Also the queries and the output of the attention are experts, of two heads each."""
    table = EMBEDDING | HEAD
    table |= weights(("router",), f"{LAYER}mlp.router.layer")
    table |= weights(("router",), f"{LAYER}self_attention.experts.router.layer")
    table |= weights(("expert_in", rows(2)), f"{LAYER}mlp.input_linear")
    table |= weights(("expert_out",), f"{LAYER}mlp.output_linear")
    attention = f"{LAYER}self_attention."
    queries = odd(("attention", "expert_in", "other"), rows(2))
    outputs = odd(("attention", "expert_out", "other"), columns(2))
    table |= weights(queries, f"{attention}experts.input_linear")
    table |= weights(outputs, f"{attention}experts.output_linear")
    return table | weights(odd("attention", rows(4)), f"{attention}kv_proj")


def nemotron_h():
    """Three kinds of layers, each called mixer; experts without gates."""
    table = weights(TABLE, "model.embeddings") | mamba2_mixer("model.layers.0.mixer.") | HEAD
    table |= heads("model.layers.1.mixer.", 4, 2)
    experts = {
        "experts.up_proj": ("expert_in",),
        "experts.down_proj": ("expert_out",),
        "gate.weight": ("router",),
    }
    table |= prefixed("model.layers.2.mixer.", experts)
    return table | mlp("model.layers.2.mixer.shared_experts.", "up_proj down_proj")


def zamba2():
    """A transformer that several layers share, twice as wide inside, each with its adapters."""
    shared = f"{SECOND}shared_transformer."
    table = EMBEDDING | mamba2_mixer(f"{FIRST}mamba.") | HEAD
    table |= mamba2_mixer(f"{SECOND}mamba_decoder.mamba.")
    table |= heads(f"{shared}self_attn.", 4)
    table |= weights(("mlp_in", rows(2)), f"{shared}feed_forward.gate_up_proj")
    table |= weights(("mlp_out",), f"{shared}feed_forward.down_proj")
    adapters = [f"{shared}self_attn.linear_{name}_adapter_list" for name in "qkv"]
    adapters += [f"{shared}feed_forward.gate_up_proj_adapter_list"]
    table |= weights(odd(("lora", "dense")), *(f"{name}.*.*" for name in adapters))
    return table | weights(odd(), f"{SECOND}linear")


def falcon_h1():
    """Attention and a state-space model side by side in every layer."""
    table = EMBEDDING | heads(f"{LAYER}self_attn.", 4, 2) | mamba2_mixer(f"{LAYER}mamba.")
    return table | gated(f"{LAYER}feed_forward.") | HEAD


def gemma3n():
    """What it calls a router weighs two copies of the stream, by a tanh: no experts."""
    table = EMBEDDING | heads(f"{LAYER}self_attn.", 4, 2) | GATED_MLP | HEAD
    table |= weights(TABLE, "model.embed_tokens_per_layer")
    table |= weights(odd(), "model.altup_projections.*", "model.altup_unembed_projections.*")
    table |= weights(odd(layout=rows(2)), "model.per_layer_model_projection")
    names = ["per_layer_input_gate", "per_layer_projection", "altup.modality_router"]
    names += ["altup.prediction_coefs", "altup.correction_coefs"]
    names += ["laurel.linear_left", "laurel.linear_right"]
    return table | weights(odd(), *(f"{LAYER}{name}" for name in names))


def xlstm():
    """A matrix memory for each head, with queries, keys and values; a soft-capped head."""
    layer = "backbone.blocks.*.mlstm_layer."
    per_head = odd(("attention", "dense"), rows(4))
    table = weights(TABLE, "backbone.embeddings") | HEAD
    table |= weights(per_head, *(f"{layer}{name}" for name in ("q", "k", "v", "ogate_preact")))
    table |= weights(odd(("attention", "dense"), columns(4)), f"{layer}out_proj")
    table |= weights(odd(), f"{layer}igate_preact", f"{layer}fgate_preact")
    inputs = ("proj_up_gate", "proj_up")
    table |= weights(odd("mlp_in"), *(f"backbone.blocks.*.ffn.{name}" for name in inputs))
    return table | weights(odd("mlp_out"), "backbone.blocks.*.ffn.proj_down")


def xlnet():
    """Raw tensors [d, heads, size]: a leading dimension that is no batch."""
    layer = "transformer.layer.*."
    queries = odd(("attention", "other"), [FLAT, T, *rows(4)])
    table = weights(TABLE, "transformer.word_embedding") | weights(("lm_head",), "lm_loss")
    table |= {"transformer.mask_emb": OTHER}
    table |= {f"{layer}rel_attn.{name}": queries for name in ("q", "k", "v", "r")}
    table |= {f"{layer}rel_attn.o": odd(("attention", "other"), [FLAT, *columns(4)])}
    table |= {f"{layer}rel_attn.{name}_bias": OTHER for name in ("r_r", "r_s", "r_w")}
    table |= {f"{layer}rel_attn.seg_embed": (("embedding", "other"),)}
    return table | mlp(f"{layer}ff.", "layer_1 layer_2")


def qwen2_5_vl():
    """A tower with a fused projection, which a patch's two frames enter by a convolution."""
    block = "model.visual.blocks.*."
    language = "model.language_model."
    table = weights(PATCHES, "model.visual.patch_embed.proj")
    table |= weights(("attention", rows(15)), f"{block}attn.qkv") | gated(f"{block}mlp.")
    table |= weights(("attention", columns(5)), f"{block}attn.proj")
    table |= weights(odd(), "model.visual.merger.mlp.*")
    table |= weights(TABLE, f"{language}embed_tokens") | gated(f"{language}layers.*.mlp.")
    return table | heads(f"{language}layers.*.self_attn.", 4, 2) | HEAD


def sam():
    """As many mask tokens as the last map has outputs, and as wide: still no head."""
    encoder, decoder = "vision_encoder.", "mask_decoder."
    layer, blocks = f"{encoder}layers.*.", f"{decoder}transformer.layers.*."
    table = {f"{encoder}pos_embed": TABLE} | weights(PATCHES, f"{encoder}patch_embed.projection")
    # Two coordinates times random frequencies.
    positions = odd(("embedding", "other", "dense"))
    table |= {"shared_image_embedding.positional_embedding": positions}
    table |= weights(("attention", rows(12)), f"{layer}attn.qkv")
    table |= weights(("attention", columns(4)), f"{layer}attn.proj")
    table |= {f"{layer}attn.rel_pos_{axis}": (("embedding", "other"),) for axis in "hw"}
    table |= mlp(f"{layer}mlp.", "lin1 lin2") | mlp(f"{blocks}mlp.", "lin1 lin2")
    table |= weights(CONV, f"{encoder}neck.conv1", f"{encoder}neck.conv2")
    table |= weights(CONV, *(f"prompt_encoder.mask_embed.conv{i}" for i in (1, 2, 3)))
    one_row = (("embedding", "other"),)
    names = ("no_mask_embed", "not_a_point_embed", "point_embed.*")
    table |= weights(one_row, *(f"prompt_encoder.{name}" for name in names))
    table |= weights(one_row, f"{decoder}iou_token") | weights(TABLE, f"{decoder}mask_tokens")
    out = "q_proj k_proj v_proj out_proj"
    for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
        table |= heads(f"{blocks}{name}.", 2, names=out)
    table |= heads(f"{decoder}transformer.final_attn_token_to_image.", 2, names=out)
    transposed = odd(layout=[FLAT, T])
    table |= weights(transposed, f"{decoder}upscale_conv1", f"{decoder}upscale_conv2")
    for head in ("output_hypernetworks_mlps.*.", "iou_prediction_head."):
        names = ("proj_in", "proj_out", "layers.*")
        table |= weights(odd(), *(f"{decoder}{head}{name}" for name in names))
    return table


def build_qwen2_5_vl():
    vision = dict(depth=2, hidden_size=20, intermediate_size=44, num_heads=5, patch_size=4)
    vision |= dict(out_hidden_size=24, in_channels=3)
    axes = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 1])
    text = GROUPED | dict(rope_parameters=axes)
    options = dict(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**options))


def build_sam():
    vision = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=16)
    vision |= dict(patch_size=4, output_channels=16, mlp_dim=40, window_size=2)
    vision |= dict(global_attn_indexes=[1], num_pos_feats=8)
    prompts = dict(hidden_size=16, image_size=16, patch_size=4)
    masks = dict(hidden_size=16, mlp_dim=36, num_attention_heads=2, iou_head_hidden_dim=16)
    config = SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks
    )
    return SamModel(config)


LATENT = dict(q_lora_rank=6, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4)
LATENT |= dict(v_head_dim=8)
NARROW = dict(moe_intermediate_size=14, num_experts_per_tok=2)
ONE_GROUP = dict(n_group=1, topk_group=1)
ALL_KEYS = BASE | dict(num_key_value_heads=4)
GLM = ALL_KEYS | LATENT | NARROW | ONE_GROUP
GLM |= dict(n_routed_experts=6, n_shared_experts=2, mlp_layer_types=["dense", "sparse"])
KIMI = ALL_KEYS | LATENT | NARROW | ONE_GROUP
KIMI |= dict(q_lora_rank=None, num_local_experts=6, mlp_layer_types=["dense", "sparse"])
KIMI |= dict(linear_num_heads=3, linear_head_dim=10)
KIMI |= dict(layer_types=["linear_attention", "full_attention"])
LONGCAT = dict(vocab_size=56, hidden_size=24, num_layers=1, num_attention_heads=4)
LONGCAT |= LATENT | dict(ffn_hidden_size=40, moe_topk=2, n_routed_experts=5, zero_expert_num=2)
LONGCAT |= dict(expert_ffn_hidden_size=14, head_dim=4, tie_word_embeddings=False, **IDS)
JETMOE = dict(vocab_size=56, hidden_size=24, num_hidden_layers=2, num_key_value_heads=2)
JETMOE |= dict(kv_channels=8, intermediate_size=14, num_local_experts=5, num_experts_per_tok=2)
JETMOE |= dict(tie_word_embeddings=False, **IDS)
STATES = dict(mamba_n_heads=6, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=5)
NEMOTRON = dict(
    vocab_size=56,
    hidden_size=24,
    layers_block_type=["mamba", "attention", "moe"],
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    mamba_num_heads=6,
    mamba_head_dim=8,
    ssm_state_size=5,
    n_groups=2,
    n_routed_experts=5,
    moe_shared_expert_intermediate_size=18,
    tie_word_embeddings=False,
    **NARROW,
    **ONE_GROUP,
    **IDS,
)
ZAMBA = ALL_KEYS | dict(mamba_d_state=5, mamba_expand=2, mamba_ngroups=2, n_mamba_heads=6)
ZAMBA |= dict(num_mem_blocks=1, adapter_rank=3, use_shared_attention_adapter=True)
ZAMBA |= dict(layers_block_type=["mamba", "hybrid"])
GEMMA3N = FREE | dict(
    layer_types=["sliding_attention", "full_attention"],
    hidden_size_per_layer_input=6,
    vocab_size_per_layer_input=48,
    num_kv_shared_layers=0,
    laurel_rank=5,
    altup_num_inputs=2,
    activation_sparsity_pattern=[0.0, 0.0],
)
XLSTM = dict(vocab_size=56, hidden_size=32, num_hidden_layers=2, num_heads=4)
XLSTM |= dict(tie_word_embeddings=False, **IDS)
XLNET = dict(vocab_size=56, d_model=24, n_layer=2, n_head=4, d_inner=40)
XLNET |= dict(tie_word_embeddings=False)

CASES = {
    "glm4_moe_lite": Case(from_config("Glm4MoeLiteForCausalLM", **GLM), glm4_moe_lite(), SIGMOID),
    "kimi_linear": Case(from_config("KimiLinearForCausalLM", **KIMI), kimi_linear(), SIGMOID),
    "longcat_flash": Case(from_config("LongcatFlashForCausalLM", **LONGCAT), longcat(), SOFTMAX),
    "jetmoe": Case(from_config("JetMoeForCausalLM", **JETMOE), jetmoe(), SOFTMAX),
    "nemotron_h": Case(from_config("NemotronHForCausalLM", **NEMOTRON), nemotron_h(), SIGMOID),
    "zamba2": Case(from_config("Zamba2ForCausalLM", **ZAMBA), zamba2(), CENTERED),
    "falcon_h1": Case(
        from_config("FalconH1ForCausalLM", **FREE, **STATES, mamba_d_ssm=48),
        falcon_h1(),
        CENTERED,
    ),
    "gemma3n": Case(from_config("Gemma3nForCausalLM", **GEMMA3N), gemma3n(), CAPPED),
    "xlstm": Case(from_config("xLSTMForCausalLM", **XLSTM), xlstm(), CAPPED),
    "xlnet": Case(from_config("XLNetLMHeadModel", **XLNET), xlnet(), CENTERED),
    "qwen2_5_vl": Case(build_qwen2_5_vl, qwen2_5_vl(), CENTERED),
    "sam": Case(build_sam, sam()),
}
