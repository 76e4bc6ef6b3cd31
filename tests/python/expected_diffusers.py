"""What denoises: what routing must find, by hand from diffusers' modelling code.

Linears that make a block's shifts, scales and gates from the time have them in blocks of rows.
"""

import diffusers
from expected_cases import CONV, OTHER, PATCHES, TABLE, Case, heads, mlp, odd, weights
from expected_roles import rows

NAMES = "to_q to_k to_v to_out.0"
ADDED = "add_q_proj add_k_proj add_v_proj to_add_out"
BLOCK = "transformer_blocks.*."
PLAIN = "net.0.proj net.2"


def modulation(n, *names):
    return weights(odd(layout=rows(n)), *names)


def time(prefix):
    return weights(odd(), f"{prefix}linear_1", f"{prefix}linear_2")


def dit():
    embedder = f"{BLOCK}norm1.emb."
    table = weights(PATCHES, "pos_embed.proj") | time(f"{embedder}timestep_embedder.")
    table |= weights(TABLE, f"{embedder}class_embedder.embedding_table")
    table |= modulation(6, f"{BLOCK}norm1.linear") | modulation(2, "proj_out_1")
    table |= heads(f"{BLOCK}attn1.", 4, names=NAMES) | mlp(f"{BLOCK}ff.", PLAIN)
    return table | weights(odd(), "proj_out_2")


def pixart():
    """Raw tables of shifts, scales and gates: a row is a bias, not a token's vector."""
    table = weights(PATCHES, "pos_embed.proj") | time("adaln_single.emb.timestep_embedder.")
    table |= {"scale_shift_table": OTHER, f"{BLOCK}scale_shift_table": OTHER}
    table |= modulation(6, "adaln_single.linear") | time("caption_projection.")
    for name in ("attn1.", "attn2."):
        table |= heads(f"{BLOCK}{name}", 4, names=NAMES)
    return table | mlp(f"{BLOCK}ff.", PLAIN) | weights(odd(), "proj_out")


def sd3():
    """Two streams with an attention for both; the second ends before the last block's output."""
    table = weights(PATCHES, "pos_embed.proj") | weights(odd(), "context_embedder", "proj_out")
    table |= time("time_text_embed.timestep_embedder.") | time("time_text_embed.text_embedder.")
    table |= heads(f"{BLOCK}attn.", 4, names=NAMES) | mlp(f"{BLOCK}ff.", PLAIN)
    table |= heads(f"{BLOCK}attn.", 4, names=ADDED)
    table |= mlp("transformer_blocks.0.ff_context.", PLAIN)
    table |= modulation(6, f"{BLOCK}norm1.linear", "transformer_blocks.0.norm1_context.linear")
    return table | modulation(2, "transformer_blocks.1.norm1_context.linear", "norm_out.linear")


def flux():
    """Blocks of two streams, then of one, where attention and MLP share their last matrix."""
    table = weights(odd(), "context_embedder", "x_embedder", "proj_out")
    for name in ("timestep", "guidance", "text"):
        table |= time(f"time_text_embed.{name}_embedder.")
    table |= heads(f"{BLOCK}attn.", 4, names=NAMES) | heads(f"{BLOCK}attn.", 4, names=ADDED)
    table |= mlp(f"{BLOCK}ff.", PLAIN) | mlp(f"{BLOCK}ff_context.", PLAIN)
    table |= modulation(6, f"{BLOCK}norm1.linear", f"{BLOCK}norm1_context.linear")
    single = "single_transformer_blocks.*."
    inputs = (f"{single}attn.{name}" for name in ("to_q", "to_k", "to_v"))
    table |= weights(("attention", rows(4)), *inputs) | modulation(3, f"{single}norm.linear")
    table |= weights(odd("mlp_in"), f"{single}proj_mlp") | modulation(2, "norm_out.linear")
    # Columns: the heads, then the MLP's neurons.
    shared = [{"sections": [6, 6, 6, 6, 96], "dim": -1}]
    return table | weights(odd(("attention", "mlp_out", "dense"), shared), f"{single}proj_out")


def convolutions(prefix, *names):
    """Two in a residual block, a third where its width changes."""
    return weights(CONV, *(f"{prefix}resnets.*.{name}" for name in ("conv1", "conv2", *names)))


def unet():
    """Convolutions, and transformers of which each has four heads; gates and inputs as one."""
    table = weights(CONV, "conv_in", "conv_out") | time("time_embedding.")
    table |= weights(CONV, "down_blocks.*.downsamplers.*.conv", "up_blocks.*.upsamplers.*.conv")
    for part in ("down_blocks.*.", "up_blocks.*.", "mid_block."):
        table |= convolutions(part, *(["conv_shortcut"] if part != "mid_block." else []))
        table |= weights(odd(), f"{part}resnets.*.time_emb_proj")
        table |= weights(CONV, *(f"{part}attentions.*.{name}" for name in ("proj_in", "proj_out")))
        block = f"{part}attentions.*.{BLOCK}"
        for name in ("attn1.", "attn2."):
            table |= heads(f"{block}{name}", 4, names=NAMES)
        table |= weights(("mlp_in", rows(2)), f"{block}ff.net.0.proj")
        table |= weights(("mlp_out",), f"{block}ff.net.2")
    return table


def autoencoder():
    """One attention of one head: whole matrices."""
    table = weights(CONV, "quant_conv", "post_quant_conv")
    for half, way in (("encoder", "down"), ("decoder", "up")):
        blocks, middle = f"{half}.{way}_blocks.*.", f"{half}.mid_block."
        table |= weights(CONV, f"{half}.conv_in", f"{half}.conv_out")
        table |= weights(CONV, f"{blocks}{way}samplers.*.conv")
        table |= convolutions(blocks, "conv_shortcut") | convolutions(middle)
        table |= heads(f"{middle}attentions.*.", 1, names=NAMES)
    return table


def build(name, **config):
    return lambda: getattr(diffusers, name)(**config)


HEADS = dict(num_attention_heads=4, attention_head_dim=6, num_layers=2)
DIT = HEADS | dict(in_channels=3, out_channels=5, sample_size=8, patch_size=2)
DIT |= dict(num_embeds_ada_norm=7)
PIXART = DIT | dict(cross_attention_dim=24, caption_channels=20)
SD3 = HEADS | dict(sample_size=8, patch_size=2, in_channels=3, out_channels=5)
SD3 |= dict(joint_attention_dim=20, caption_projection_dim=24, pooled_projection_dim=18)
SD3 |= dict(pos_embed_max_size=8, qk_norm="rms_norm")
FLUX = HEADS | dict(patch_size=1, in_channels=5, num_single_layers=2, joint_attention_dim=20)
FLUX |= dict(pooled_projection_dim=18, guidance_embeds=True, axes_dims_rope=(2, 2, 2))
UNET = dict(
    sample_size=8,
    in_channels=3,
    out_channels=5,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 24),
    layers_per_block=1,
    cross_attention_dim=20,
    attention_head_dim=4,  # the number of heads, in spite of its name
    norm_num_groups=4,
)
VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    latent_channels=5,
    norm_num_groups=4,
)

CASES = {
    "DiT": Case(build("DiTTransformer2DModel", **DIT), dit()),
    "PixArt": Case(build("PixArtTransformer2DModel", **PIXART), pixart()),
    "SD3": Case(build("SD3Transformer2DModel", **SD3), sd3()),
    "Flux": Case(build("FluxTransformer2DModel", **FLUX), flux()),
    "UNet": Case(build("UNet2DConditionModel", **UNET), unet()),
    "AutoencoderKL": Case(build("AutoencoderKL", **VAE), autoencoder()),
}
