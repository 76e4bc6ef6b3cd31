"""The models of public libraries, from their own defaults, with tensors that hold no memory.

names(library) lists what there is to build, and build(library, name) builds one on the meta device.
"""

import importlib
import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn


class Library(NamedTuple):
    packages: tuple[str, ...]  # whose versions a report names
    names: Callable[[], list[str]]
    make: Callable[[str], nn.Module]


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Parameters on the meta device, and buffers too unless the constructor computes with them."""
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:
        from accelerate import init_empty_weights

        try:
            with init_empty_weights(include_buffers=False):
                return make()
        except Exception:
            raise error from None


# transformers

# From the most complete model of a type to the barest.
TASKS = (
    *("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "PRETRAINING"),
    *("MASKED_LM", "SPEECH_SEQ_2_SEQ", "CTC", "ZERO_SHOT_IMAGE_CLASSIFICATION"),
    "IMAGE_CLASSIFICATION",
)


def transformers_classes() -> dict[str, list[str]]:
    """Model type -> names of its classes, the most complete first."""
    from transformers.models.auto import modeling_auto as auto

    mappings = [n for n in dir(auto) if n.startswith("MODEL_") and n.endswith("_MAPPING_NAMES")]
    first = [f"MODEL_FOR_{task}_MAPPING_NAMES" for task in TASKS]
    last = "MODEL_MAPPING_NAMES"
    order = first + [n for n in mappings if n not in (*first, last)] + [last]
    classes = {}
    for mapping in order:
        for model_type, found in getattr(auto, mapping).items():
            found = found if isinstance(found, list | tuple) else [found]
            classes.setdefault(model_type, []).extend(found)
    return {model_type: list(dict.fromkeys(classes[model_type])) for model_type in sorted(classes)}


def causal_classes() -> set[str]:
    from transformers.models.auto import modeling_auto as auto

    return set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def transformers_config(model_type: str):
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]()


def transformers_names(every_class: bool = False) -> list[str]:
    classes = transformers_classes()
    if every_class:
        return [f"{model_type} {name}" for model_type, found in classes.items() for name in found]
    return list(classes)


def make_transformers(name: str) -> nn.Module:
    """A model type's most complete class that builds, or the one named behind the type."""
    import transformers

    model_type, *chosen = name.split()
    failures = []
    for name in chosen or transformers_classes()[model_type]:
        try:
            kind = getattr(transformers, name)
            return on_meta(lambda kind=kind: kind(transformers_config(model_type)))
        except Exception as error:  # whatever its constructor makes of the default config
            failures.append(f"{name}: {first_line(error)}")
    raise RuntimeError("; ".join(failures))


# Vision


def timm_names() -> list[str]:
    import timm

    return timm.list_models()


def make_timm(name: str) -> nn.Module:
    import timm

    return on_meta(lambda: timm.create_model(name, pretrained=False))


def torchvision_names() -> list[str]:
    from torchvision.models import list_models

    return list_models()


def make_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model, get_model_builder

    takes = inspect.signature(get_model_builder(name)).parameters
    backbone = {"weights_backbone": None} if "weights_backbone" in takes else {}
    return on_meta(lambda: get_model(name, weights=None, **backbone))


def diffusers_names() -> list[str]:
    import diffusers

    with_model = [n for n in dir(diffusers) if n.endswith(("Model", "KL")) or "Autoencoder" in n]
    kinds = {n: getattr(diffusers, n) for n in with_model if not n.startswith("Flax")}
    return [n for n, kind in kinds.items() if issubclass(kind, diffusers.ModelMixin)]


def make_diffusers(name: str) -> nn.Module:
    import diffusers

    return on_meta(getattr(diffusers, name))


# Training frameworks


def torchtitan_configs() -> dict[str, Callable]:
    import torchtitan.models

    folders = Path(torchtitan.models.__file__).parent
    configs = {}
    for family in sorted(f.parent.name for f in folders.glob("*/model.py")):
        try:
            module = importlib.import_module(f"torchtitan.models.{family}")
        except ModuleNotFoundError:  # of something that this family alone needs
            continue
        for key, table in vars(module).items():
            if key.endswith("_configs") and isinstance(table, dict):
                configs |= {f"{family} {size}": make for size, make in table.items()}
    return configs


def make_torchtitan(name: str) -> nn.Module:
    make = torchtitan_configs()[name]
    backends = {"attn_backend": "flex", "moe_comm_backend": "standard"}
    takes = inspect.signature(make).parameters
    return on_meta(lambda: make(**{k: v for k, v in backends.items() if k in takes}).build())


MEGATRON = {
    "gpt": {},
    "gpt with gates and grouped queries": dict(
        num_query_groups=2, gated_linear_unit=True, add_bias_linear=False
    ),
    "gpt of experts": dict(num_moe_experts=4, gated_linear_unit=True, add_bias_linear=False),
    "bert": {},
    "t5": {},
}  # small: their constructors take no device


def make_megatron(name: str) -> nn.Module:
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
    from megatron.core.models.bert.bert_model import BertModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.models.T5 import t5_spec
    from megatron.core.models.T5.t5_model import T5Model
    from megatron.core.transformer import TransformerConfig

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
    options = MEGATRON[name]
    config = TransformerConfig(
        **dict(num_layers=2, hidden_size=256, ffn_hidden_size=768, num_attention_heads=8),
        **dict(use_cpu_initialization=True, perform_initialization=False),
        **options,
    )
    table = dict(vocab_size=1000, max_sequence_length=128)
    if name == "bert":
        return BertModel(config, 2, bert_layer_local_spec, **table)
    if name == "t5":
        halves = (
            t5_spec.get_t5_encoder_with_local_block_spec(2),
            t5_spec.get_t5_decoder_with_local_block_spec(2),
        )
        return T5Model(config, config, *halves, **table)
    return GPTModel(config, get_gpt_layer_local_spec(options.get("num_moe_experts")), **table)


LIBRARIES = {
    "transformers": Library(("transformers",), transformers_names, make_transformers),
    "timm": Library(("timm",), timm_names, make_timm),
    "torchvision": Library(("torchvision",), torchvision_names, make_torchvision),
    "diffusers": Library(("diffusers",), diffusers_names, make_diffusers),
    "torchtitan": Library(("torchtitan",), lambda: list(torchtitan_configs()), make_torchtitan),
    "megatron": Library(("megatron-core",), lambda: list(MEGATRON), make_megatron),
}


def names(library: str, every_class: bool = False, sample: int = 0) -> list[str]:
    """All, or so many of them, always the same; of transformers one class for each model type,
    or every class of the auto mappings, named "type Class"."""
    every = every_class and library == "transformers"
    found = transformers_names(every_class=True) if every else LIBRARIES[library].names()
    if sample and sample < len(found):
        found = sorted(random.Random(0).sample(found, sample))
    return found


def build(library: str, name: str) -> nn.Module:
    return LIBRARIES[library].make(name)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0][:200]}"
