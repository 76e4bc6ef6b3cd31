"""Models of public libraries, small enough to run on a CPU in a moment, with inputs for them.

Those of transformers have their default configs as tiny_configs.py makes them small.
"""

import copy
import inspect

import torch
from tiny_configs import HEADS, NEURONS, VOCABULARY, WIDTH, smaller
from torch import Tensor, nn


def transformers_model(model_type: str, name: str) -> nn.Module:
    """Of a class, with a config made small."""
    import transformers
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    config = kind(**{k: v for k, v in smaller(kind().to_dict()).items() if k != "model_type"})
    if getattr(config, "use_cache", None):
        config.use_cache = False
    config._attn_implementation = "eager"
    model = getattr(transformers, name)(config)
    if hasattr(model, "set_experts_implementation"):
        try:
            model.set_experts_implementation("eager")  # others refuse float64
        except (ValueError, AttributeError):
            pass
    return model


def transformers_inputs(model: nn.Module) -> dict:
    """What the forward pass of a model asks for."""
    takes = inspect.signature(model.forward).parameters
    config = model.config
    generator = torch.Generator().manual_seed(1)
    vocabulary = getattr(config.get_text_config(), "vocab_size", None) or VOCABULARY

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    def tokens(*shape):
        # The last ones stand for images and the like.
        return torch.randint(3, min(vocabulary, VOCABULARY) - 4, shape, generator=generator)

    inputs = {}
    vision = next(
        (c for n in ("vision_config", "image_config") if (c := getattr(config, n, None))), config
    )
    size = getattr(vision, "image_size", 32) or 32
    size = size if isinstance(size, list | tuple) else (size, size)
    main = getattr(model, "main_input_name", "input_ids")
    if "input_ids" in takes:
        inputs["input_ids"] = tokens(2, 9)
    elif "decoder_input_ids" in takes and main == "input_ids":
        inputs["input_ids"] = tokens(2, 9)
    if "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = tokens(2, 5)
    has_tower = (
        main == "pixel_values"
        or {"pixel_values", "input_ids"} <= set(takes)
        and (
            "CLIP" in type(model).__name__
            or "get_image_features" not in dir(model)
            or getattr(config, "image_token_id", None) is None
        )
    )
    if "pixel_values" in takes and has_tower:
        channels = getattr(vision, "num_channels", 3) or 3
        inputs["pixel_values"] = noise(2, channels, *size)
    if "input_features" in takes and "input_ids" not in inputs:
        bins = next(
            (
                getattr(config, n)
                for n in ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
                if getattr(config, n, None)
            ),
            80,
        )
        length = 2 * getattr(config, "max_source_positions", 32)
        inputs["input_features"] = (
            noise(2, bins, length) if "Whisper" in type(model).__name__ else noise(2, 32, bins)
        )
    if "input_values" in takes and "input_ids" not in inputs:
        inputs["input_values"] = noise(2, 4000)
    if not inputs:
        raise ValueError(f"no input for {main}: {list(takes)[:6]}")
    if "use_cache" in takes:
        inputs["use_cache"] = False
    if "return_dict" in takes:
        inputs["return_dict"] = True
    return inputs


# Outputs that list what is inside instead
INSIDE = ("attention", "hidden_states", "router", "cache", "key_values", "probs", "loss")


def outputs_of(result, key="") -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result.detach()] if result.is_floating_point() else []
    if isinstance(result, dict):
        pairs = [(k, v) for k, v in result.items() if not any(word in k for word in INSIDE)]
        return [x for k, v in pairs for x in outputs_of(v, k)]
    if isinstance(result, list | tuple):
        return [x for v in result for x in outputs_of(v)]
    if hasattr(result, "sample"):
        return outputs_of(result.sample)
    return []


def randomise(model: nn.Module) -> None:
    """Every tensor matters: matrices keep the size of what they multiply, the rest is perturbed."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if not p.is_floating_point():
            continue
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        width = max(p.shape, default=1)
        if p.ndim >= 2 and p.numel() > 2 * width:
            fan_in = p[0].numel() if p.ndim != 3 else min(p.shape[-1], p.shape[-2])
            table = "embed" in name or "token" in name or "position" in name
            p.data = (noise * (1.0 if table else 1.2 * fan_in**-0.5)).to(p.dtype)
        else:
            p.data = (p.data.double() + 0.25 * noise).to(p.dtype)


def cast(inputs, dtype):
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {k: cast(v, dtype) for k, v in inputs.items()}
    return inputs


def runner(inputs):
    """Runs a model on inputs by position or by name, in the model's own type."""

    def run(model: nn.Module) -> list[Tensor]:
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        given = (
            copy.copy(cast(inputs, dtype))
            if isinstance(inputs, dict)
            else [cast(x, dtype) for x in inputs]
        )
        return outputs_of(model(**given) if isinstance(given, dict) else model(*given))

    return run


# Other libraries: (how it is made, its inputs)

IMAGE = 64
TIMM_SIZES = [  # what its entry points take, from the smallest
    *({"img_size": IMAGE, **depth} for depth in ({"depth": 2}, {"depths": (1, 1, 1, 1)})),
    *({"img_size": IMAGE, "num_blocks": 2}, {"depth": 2}, {"depths": (1, 1, 1, 1)}),
    *({"img_size": IMAGE}, {}),
]
MOST_PARAMETERS = 30e6


def refuse_large(model: nn.Module) -> None:
    if sum(p.numel() for p in model.parameters()) > MOST_PARAMETERS:
        raise ValueError("too large")


def timm_model(name: str) -> tuple[nn.Module, list[Tensor]]:
    import timm

    for options in TIMM_SIZES:
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=10, **options)
        except (TypeError, AssertionError, ValueError, RuntimeError, IndexError):
            continue
        refuse_large(model)
        model = timm.create_model(name, num_classes=10, **options)
        size = options.get("img_size", 0)
        if not size and model.default_cfg.get("fixed_input_size"):
            size = model.default_cfg["input_size"][-1]
        return model, [image(size or IMAGE)]
    raise ValueError("none of the small sizes")


def image(size: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, size, size, generator=generator)


def torchvision_model(name: str) -> tuple[nn.Module, list[Tensor]]:
    from torchvision.models import MaxVit, SwinTransformer, VisionTransformer
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    swin = dict(
        patch_size=[4, 4], embed_dim=24, depths=[1, 2], num_heads=[2, 4], window_size=[4, 4]
    )
    makes = {
        "vit": lambda: VisionTransformer(IMAGE, 16, 2, HEADS, WIDTH, NEURONS, num_classes=10),
        "swin": lambda: SwinTransformer(**swin, num_classes=10),
        "swin_v2": lambda: SwinTransformer(
            **swin, num_classes=10, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
        ),
        "maxvit": lambda: MaxVit((IMAGE, IMAGE), 8, 2, [16, 32], [1, 1], 8, 0.0, num_classes=10),
    }
    return makes[name](), [image(IMAGE)]


TORCHVISION = ("vit", "swin", "swin_v2", "maxvit")

_STATES = {"hidden_states": (2, 4, 8, 8)}
DIFFUSERS = {  # config, inputs by shape or value
    "UNet2DConditionModel": (
        dict(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=20,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8,
        ),
        {"sample": (2, 4, 8, 8), "timestep": 7, "encoder_hidden_states": (2, 5, 20)},
    ),
    "DiTTransformer2DModel": (
        dict(
            num_attention_heads=4,
            attention_head_dim=12,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
            norm_num_groups=8,
        ),
        {**_STATES, "timestep": torch.tensor([3, 5]), "class_labels": torch.tensor([1, 2])},
    ),
    "SD3Transformer2DModel": (
        dict(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=3,
            attention_head_dim=12,
            num_attention_heads=4,
            joint_attention_dim=20,
            caption_projection_dim=48,
            pooled_projection_dim=28,
            out_channels=4,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        {
            **_STATES,
            "encoder_hidden_states": (2, 5, 20),
            "pooled_projections": (2, 28),
            "timestep": torch.tensor([3, 5]),
        },
    ),
    "FluxTransformer2DModel": (
        dict(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=12,
            num_attention_heads=4,
            joint_attention_dim=20,
            pooled_projection_dim=28,
            axes_dims_rope=(4, 4, 4),
        ),
        {
            "hidden_states": (2, 16, 4),
            "encoder_hidden_states": (2, 5, 20),
            "pooled_projections": (2, 28),
            "timestep": torch.tensor([0.3, 0.5]),
            "img_ids": (16, 3),
            "txt_ids": (5, 3),
        },
    ),
    "AutoencoderKL": (
        dict(
            block_out_channels=(16, 32),
            norm_num_groups=8,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        {"sample": (2, 3, 16, 16)},
    ),
    "PixArtTransformer2DModel": (
        dict(
            num_attention_heads=4,
            attention_head_dim=12,
            num_layers=2,
            cross_attention_dim=48,
            sample_size=8,
            caption_channels=20,
            norm_num_groups=8,
            use_additional_conditions=False,
        ),
        {**_STATES, "encoder_hidden_states": (2, 5, 20), "timestep": torch.tensor([3, 5])},
    ),
    "SanaTransformer2DModel": (
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=12,
            num_layers=2,
            num_cross_attention_heads=4,
            cross_attention_head_dim=12,
            cross_attention_dim=48,
            caption_channels=20,
            sample_size=8,
            patch_size=1,
        ),
        {**_STATES, "encoder_hidden_states": (2, 5, 20), "timestep": torch.tensor([3, 5])},
    ),
}


def diffusers_model(name: str) -> tuple[nn.Module, dict]:
    import diffusers

    config, shapes = DIFFUSERS[name]
    generator = torch.Generator().manual_seed(1)
    inputs = {
        k: torch.randn(v, generator=generator) if isinstance(v, tuple) else v
        for k, v in shapes.items()
    }
    return getattr(diffusers, name)(**config), inputs
