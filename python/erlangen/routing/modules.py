"""What a module is, and where in the model it stands."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .families import BLOCKS
from .slots import TRANSPOSE, Block

# Modules that hold others and give them no meaning.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper",
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "peft.peft_model.PeftModel",
    "peft.tuners.tuners_utils.BaseTuner",
}
# Low-rank adapters: the first child is the layer that is adapted, all others are the adapters'.
_LORA = {"peft.tuners.lora.layer.LoraLayer"}
_LORA_GAINS = {"peft.tuners.lora.dora.DoraLinearLayer"}  # one length for each output
# The module as it was and trainable copies of it, each in the module's own place.
_COPIES = {"peft.utils.other.ModulesToSaveWrapper"}
# Classes from here have a meaning of their own: a linear map inside is not "any other matrix".
_LIBRARIES = ("torch.nn.modules.", "transformers.models.", "transformers_modules.", "peft.")
_NO_MEANING = (nn.Module, *_CONTAINERS)

_HF_CONV1D = {"transformers.pytorch_utils.Conv1D"}
_HF_CONFIGS = {
    "transformers.configuration_utils.PreTrainedConfig",
    "transformers.configuration_utils.PretrainedConfig",
}
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Place:
    """A module, the module that uses it, and the nearest config."""

    module: nn.Module
    owner: nn.Module | None  # nearest enclosing module that is no container and no wrapper
    config: object | None
    is_adapter: bool = False  # of a low-rank adapter


def walk(model: nn.Module) -> list[Place]:
    """All modules in the order of their definition, a shared one at each of its places."""
    places = []

    def visit(module, owner, config, is_adapter):
        config = _own_config(module) or config
        places.append(Place(module, owner, config, is_adapter))
        if not _is_transparent(module):
            owner = module
        is_lora = has_class(module, _LORA)
        for i, child in enumerate(module._modules.values()):
            if child is not None:
                visit(child, owner, config, is_adapter or (is_lora and i > 0))

    visit(model, None, None, False)
    return places


def is_linear(module: nn.Module) -> bool:
    """Whether the module is one linear map, stored either way round."""
    return isinstance(module, nn.Linear) or has_class(module, _HF_CONV1D)


def storage(linear: nn.Module) -> list:
    """The layout that makes a linear map's weight [out, in]."""
    return [TRANSPOSE] if has_class(linear, _HF_CONV1D) else []


def is_gain(module: nn.Module) -> bool:
    """Whether the module's tensor, of however many dimensions, has one factor for each feature."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or has_class(module, _LORA_GAINS)


def is_embedding(module: nn.Module) -> bool:
    """Whether the module is a lookup table."""
    return isinstance(module, _EMBEDDINGS)


def in_library(
    module: nn.Module | None, libraries: str | tuple[str, ...] = _LIBRARIES
) -> str | None:
    """The name of the library class that the module is, None for a class of the user's own."""
    for kind in type(module).__mro__:
        if kind not in _NO_MEANING and f"{kind.__module__}.".startswith(libraries):
            return kind.__qualname__
    return None


def has_class(thing, paths: set[str]) -> bool:
    """Whether one of these classes is the thing's or an ancestor of it.

    By path, so that no library need be imported; with ancestors, because FSDP2 and
    parametrizations swap a module's class for a subclass of it.
    """
    return any(f"{kind.__module__}.{kind.__qualname__}" in paths for kind in type(thing).__mro__)


def _is_transparent(module: nn.Module) -> bool:
    is_container = isinstance(module, _CONTAINERS) and in_library(module) is None
    return is_container or has_class(module, _WRAPPERS | _LORA | _COPIES)


def _own_config(module: nn.Module):
    return next((v for v in vars(module).values() if has_class(v, _HF_CONFIGS)), None)


def blocks_of(module: nn.Module) -> tuple[Block, ...]:
    """What is known about the module's class: a block for each way in which it is built."""
    for kind in type(module).__mro__:
        blocks = BLOCKS.get(f"{kind.__module__}.{kind.__qualname__}")
        if blocks is not None:
            return blocks
    return ()


def children_of(
    module: nn.Module, is_kind: Callable[[nn.Module], bool]
) -> list[tuple[str, list[nn.Module]]]:
    """The children of a kind that the module itself defines, in order: wrapped or not, and with
    their copies if there are any."""
    found = []
    for name, child in module._modules.items():
        versions = [] if child is None else _unwrapped(child)
        if versions and is_kind(versions[0]):
            found.append((name, versions))
    return found


def _unwrapped(module: nn.Module) -> list[nn.Module]:
    inner = [child for child in module._modules.values() if child is not None]
    if has_class(module, _COPIES):
        copies = [copy for holder in inner[1:] for copy in holder._modules.values()]
        return [version for part in inner[:1] + copies for version in _unwrapped(part)]
    if has_class(module, _WRAPPERS | _LORA):
        return _unwrapped(inner[0]) if inner else []
    return [module]


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the module itself holds, in order."""
    return [(name, p) for name, p in module._parameters.items() if p is not None]


def matrices_of(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Of these the ones with two or more dimensions."""
    return [(name, p) for name, p in own_parameters(module) if p.ndim >= 2]


def matrix_of(linear: nn.Module) -> nn.Parameter | None:
    """A linear map's weight; None if it holds none, or more than one tensor that may be it."""
    matrices = [p for _, p in matrices_of(linear)]
    return matrices[0] if len(matrices) == 1 else None
