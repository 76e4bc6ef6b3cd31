"""Models of images: what routing must find, by hand from transformers, timm and torchvision."""

import timm
import torchvision
from expected_cases import (
    CONV,
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
from expected_families import FLAT, gated
from expected_roles import columns, rows
from torchvision.models.resnet import Bottleneck

OUT = "q_proj k_proj v_proj out_proj"


def fused(prefix, n, first, second, out="proj"):
    """Rows: all queries, all keys, all values."""
    table = weights(("attention", rows(3 * n)), f"{prefix}attn.qkv")
    table |= weights(("attention", columns(n)), f"{prefix}attn.{out}")
    return table | mlp(f"{prefix}mlp.", f"{first} {second}")


# transformers


def dinov2(prefix, mlps):
    layer = f"{prefix}encoder.layer.*."
    table = {f"{prefix}embeddings.{name}": OTHER for name in ("cls_token", "mask_token")}
    table |= {f"{prefix}embeddings.position_embeddings": TABLE}
    table |= weights(PATCHES, f"{prefix}embeddings.patch_embeddings.projection")
    return table | heads(f"{layer}attention.", 4) | mlps(f"{layer}mlp.")


def two_layers(prefix):
    return mlp(prefix, "fc1 fc2")


def dinov3():
    """An MLP without a gate, though it says up_proj. No table of positions."""
    table = {f"embeddings.{name}": OTHER for name in ("cls_token", "mask_token")}
    table |= {"embeddings.register_tokens": (("embedding", "other"),)}
    table |= weights(PATCHES, "embeddings.patch_embeddings")
    return (
        table
        | heads("model.layer.*.attention.", 4)
        | mlp("model.layer.*.mlp.", "up_proj down_proj")
    )


def swin():
    """Two heads in the first stage, three in the second; windows with a bias a head."""
    table = weights(PATCHES, "swin.embeddings.patch_embeddings.projection")
    for stage, n in enumerate((2, 3)):
        block = f"swin.encoder.layers.{stage}.blocks.*."
        table |= heads(f"{block}attention.", n) | two_layers(f"{block}mlp.")
        bias = "relative_position_bias.relative_position_bias_table"
        table |= {f"{block}attention.{bias}": OTHER}
    reduction = "swin.encoder.layers.0.downsample.reduction"
    return table | weights(odd(), reduction, "classifier")


def segformer():
    """A convolution channel by channel within the MLP; keys and values of fewer places."""
    table = weights(CONV, "decode_head.linear_fuse", "decode_head.classifier")
    table |= weights(odd(), "decode_head.linear_projections.*.proj")
    table |= weights(PATCHES, "segformer.stages.*.patch_embeddings.proj")
    for stage, n in enumerate((2, 3)):
        block = f"segformer.stages.{stage}.blocks.*."
        table |= heads(f"{block}attention.", n) | two_layers(f"{block}mlp.")
        table |= weights(OTHER, f"{block}mlp.dwconv.dwconv")
    reduction = "attention.sequence_reduction.sequence_reduction"
    return table | weights(CONV, f"segformer.stages.0.blocks.*.{reduction}")


def convnext():
    layer = "convnext.encoder.stages.*.layers.*."
    table = weights(PATCHES, "convnext.embeddings.patch_embeddings")
    table |= weights(CONV, "convnext.encoder.stages.*.downsampling_layer.*")
    table |= weights(OTHER, f"{layer}dwconv") | weights(odd("mlp_in"), f"{layer}pwconv1")
    return table | weights(odd("mlp_out"), f"{layer}pwconv2") | weights(odd(), "classifier")


def detr():
    """As many queries as the last maps have outputs: no table of tokens, and so no head.

    The backbone is frozen.
    """
    table = weights(CONV, "model.input_projection")
    table |= weights(TABLE, "model.query_position_embeddings")
    for half, n, names in (
        ("encoder", 4, ["self_attn"]),
        ("decoder", 3, ["self_attn", "encoder_attn"]),
    ):
        layer = f"model.{half}.layers.*."
        table |= two_layers(f"{layer}mlp.")
        for name in names:
            table |= heads(f"{layer}{name}.", n)
    return table | weights(odd(), "class_labels_classifier", "bbox_predictor.layers.*")


# timm


def timm_vit():
    table = {"cls_token": OTHER, "pos_embed": TABLE, "patch_embed.proj.weight": PATCHES}
    return table | fused("blocks.*.", 3, "fc1", "fc2") | weights(odd(), "head")


def timm_swin():
    table = weights(PATCHES, "patch_embed.proj")
    for stage, n in enumerate((2, 3)):
        table |= fused(f"layers.{stage}.blocks.*.", n, "fc1", "fc2")
    table |= {"layers.*.blocks.*.attn.relative_position_bias_table": OTHER}
    return table | weights(odd(), "layers.1.downsample.reduction", "head.fc")


def timm_convnext():
    """The MLP is made of convolutions over one place."""
    block = "stages.*.blocks.*."
    table = weights(CONV, "stem.*", "stages.*.downsample.*") | weights(OTHER, f"{block}conv_dw")
    table |= weights(odd("mlp_in", [FLAT]), f"{block}mlp.fc1")
    return table | weights(odd("mlp_out", [FLAT]), f"{block}mlp.fc2") | weights(odd(), "head.fc")


# torchvision


def torchvision_vit():
    """torch's own attention, which says what it is; the MLP has numbers for names."""
    layer = "encoder.layers.encoder_layer_*."
    table = {"class_token": OTHER, "encoder.pos_embedding": TABLE, "conv_proj.weight": PATCHES}
    table |= {f"{layer}self_attention.in_proj_weight": ("attention", rows(9))}
    table |= weights(("attention", columns(3)), f"{layer}self_attention.out_proj")
    return table | mlp(f"{layer}mlp.", "0 3") | weights(odd(), "heads.head")


def torchvision_swin():
    table = weights(PATCHES, "features.0.0")
    for stage, n in ((1, 2), (3, 3)):
        table |= fused(f"features.{stage}.*.", n, "0", "3")
    table |= {"features.*.*.attn.relative_position_bias_table": OTHER}
    return table | weights(odd(), "features.2.reduction", "head")


def resnet():
    """Two groups of channels in the middle convolution of a block."""
    table = weights(CONV, "conv1", "layer*.*.conv1", "layer*.*.conv3", "layer*.*.downsample.0")
    return table | weights(odd(layout=[FLAT, *rows(2)]), "layer*.*.conv2") | weights(odd(), "fc")


IMAGE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4)
IMAGE |= dict(image_size=8, patch_size=4)
# Positions in two dimensions take a head's size in quarters.
DINO3 = IMAGE | dict(hidden_size=32, intermediate_size=40, num_register_tokens=2)
SWIN = dict(image_size=16, patch_size=2, embed_dim=12, depths=[1, 1], num_heads=[2, 3])
SWIN |= dict(window_size=4, mlp_ratio=2.0, num_labels=3)
SEGFORMER = dict(
    num_encoder_blocks=2,
    depths=[1, 1],
    sr_ratios=[2, 1],
    hidden_sizes=[12, 24],
    patch_sizes=[7, 3],
    strides=[4, 2],
    num_attention_heads=[2, 3],
    mlp_ratios=[2, 3],
    decoder_hidden_size=20,
    num_labels=3,
)
BACKBONE = dict(model_type="resnet", embedding_size=10, hidden_sizes=[12, 16, 20, 28])
BACKBONE |= dict(depths=[1, 1, 1, 1], out_features=["stage4"])
DETR = dict(
    backbone_config=BACKBONE,
    d_model=24,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=3,
    encoder_ffn_dim=40,
    decoder_ffn_dim=44,
    num_queries=4,
    num_labels=3,
)


def from_timm(name, **options):
    return lambda: timm.create_model(name, num_classes=4, **options)


def build_torchvision_vit():
    return torchvision.models.VisionTransformer(
        image_size=8,
        patch_size=4,
        num_layers=2,
        num_heads=3,
        hidden_dim=24,
        mlp_dim=40,
        num_classes=4,
    )


def build_torchvision_swin():
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=12,
        depths=[1, 1],
        num_heads=[2, 3],
        window_size=[4, 4],
        num_classes=4,
    )


def build_resnet():
    options = dict(num_classes=4, groups=2, width_per_group=2)
    return torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], **options)


VIT = dict(depth=2, embed_dim=24, num_heads=3, img_size=32)
TIMM_SWIN = dict(depths=(1, 1), embed_dim=12, num_heads=(2, 3), img_size=32, window_size=4)
CONVNEXT = dict(hidden_sizes=[12, 24], depths=[1, 1], num_stages=2, num_labels=3)

CASES = {
    "dinov2": Case(
        from_config("Dinov2ForImageClassification", **IMAGE, mlp_ratio=2, num_labels=3),
        dinov2("dinov2.", two_layers) | weights(odd(), "classifier"),
    ),
    "dinov2 with gates": Case(
        from_config("Dinov2Model", **IMAGE, mlp_ratio=2, use_swiglu_ffn=True), dinov2("", gated)
    ),
    "dinov3": Case(
        from_config("DINOv3ViTModel", **DINO3),
        dinov3(),
    ),
    "swin": Case(from_config("SwinForImageClassification", **SWIN), swin()),
    "segformer": Case(from_config("SegformerForSemanticSegmentation", **SEGFORMER), segformer()),
    "convnext": Case(from_config("ConvNextForImageClassification", **CONVNEXT), convnext()),
    "detr": Case(from_config("DetrForObjectDetection", **DETR), detr()),
    "timm vit": Case(from_timm("vit_tiny_patch16_224", **VIT), timm_vit()),
    "timm swin": Case(from_timm("swin_tiny_patch4_window7_224", **TIMM_SWIN), timm_swin()),
    "timm convnext": Case(
        from_timm("convnext_atto", depths=(1,) * 4, dims=(8, 12, 16, 24)), timm_convnext()
    ),
    "torchvision vit": Case(build_torchvision_vit, torchvision_vit()),
    "torchvision swin": Case(build_torchvision_swin, torchvision_swin()),
    "torchvision resnet": Case(build_resnet, resnet()),
}
