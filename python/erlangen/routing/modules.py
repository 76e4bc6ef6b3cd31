"""What a module is, and where in the model it stands."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

TRANSPOSE = {"transpose": True}
FLATTEN = {"flatten": True}

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

_HF_CONV1D = {"transformers.pytorch_utils.Conv1D"}
_HF_CONFIGS = {
    "transformers.configuration_utils.PreTrainedConfig",
    "transformers.configuration_utils.PretrainedConfig",
}
_NO_CONFIGS = (nn.Module, torch.Tensor, Mapping, type)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(eq=False)  # a place is itself
class Place:
    """A module, the modules that use it and under which names, and the nearest config."""

    module: nn.Module
    config: object | None
    is_adapter: bool = False  # of a low-rank adapter
    # The modules that hold it, wrappers left out, and its name there; the first is the place where
    # the model defines it.
    users: list[tuple["Place", str]] = field(default_factory=list)
    index: int = 0  # in the order of definition

    @property
    def owner(self) -> "Place | None":
        """The nearest module around it that is no container."""
        place = self._definer
        while place is not None and is_container(place.module):
            place = place._definer
        return place

    @property
    def _definer(self) -> "Place | None":
        """Where it stands first; of the model itself nowhere, though a part may lead back to it."""
        first = self.users[0][0] if self.users else None
        return first if first is not None and first.index < self.index else None


def walk(model: nn.Module) -> list[Place]:
    """All modules in the order of their definition, a shared one once."""
    places: dict[int, Place] = {}
    # What is left to visit: a module, who holds it under which name, config, adapter or not, and
    # whether it stands for what it holds.
    stack = [(model, None, "", None, False, False)]
    while stack:
        module, user, name, config, is_adapter, stands_for = stack.pop()
        place = places.get(id(module))
        is_new = place is None
        if place is None:
            config = _own_config(module) or config
            place = places[id(module)] = Place(module, config, is_adapter, index=len(places))
        if user is not None and not any(user is u and name == n for u, n in place.users):
            place.users.append((user, name))
        if not is_new:
            continue
        is_lora, is_copied = has_class(module, _LORA), has_class(module, _COPIES)
        stands_for = stands_for or is_lora or is_copied or has_class(module, _WRAPPERS)
        stands_for = stands_for or _wraps_linear(module)
        children = []
        for i, (key, child) in enumerate(module._modules.items()):
            if child is None:
                continue
            adapts = is_lora and i > 0
            if stands_for and user is not None and not adapts:
                holder = (user, name)
            else:
                holder = (place, key)
            copies = is_copied and i > 0  # a ModuleDict of them
            children.append((child, *holder, config, is_adapter or adapts, copies))
        stack.extend(reversed(children))
    return list(places.values())


def is_container(module: nn.Module) -> bool:
    """Whether the module only holds others: torch's containers, not classes made from them."""
    return type(module) in _CONTAINERS


def is_linear(module: nn.Module) -> bool:
    """Whether the module is one linear map, stored either way round."""
    return (
        isinstance(module, nn.Linear)
        or has_class(module, _HF_CONV1D)
        or _is_point_convolution(module)
        or _is_named_linear(module)
    )


def _is_point_convolution(module: nn.Module) -> bool:
    """A convolution that looks at one point: the linear map of its channels."""
    return (
        isinstance(module, CONVOLUTIONS)
        and module.groups == 1
        and all(size == 1 for size in module.kernel_size)
    )


# Linear maps of other libraries (Megatron's ColumnParallelLinear, ...): called so, with one matrix
# whose shape their own numbers repeat.
_SIZES_OF_LINEARS = (("out_features", "in_features"), ("output_size", "input_size"))


def _is_named_linear(module: nn.Module) -> bool:
    if "Linear" not in type(module).__name__:
        return False
    weight = dict(module._parameters.items()).get("weight")  # a script module's has no get
    shape = () if weight is None else tuple(weight.shape)
    for names in _SIZES_OF_LINEARS:
        stated = [getattr(module, name, None) for name in names]
        sizes = [size for size in stated if isinstance(size, int)]
        if len(shape) == 2 and len(sizes) == 2:
            return all(size % part == 0 for size, part in zip(sizes, shape, strict=True) if part)
    return False


def _wraps_linear(module: nn.Module) -> bool:
    """A class that is called linear and does something around the one linear map that it holds."""
    children = [child for child in module._modules.values() if child is not None]
    return (
        "Linear" in type(module).__name__
        and len(children) == 1
        and isinstance(children[0], nn.Linear)
        and not any(p is not None and p.ndim > 1 for p in module._parameters.values())
    )


def storage(module: nn.Module) -> list:
    """The layout that makes a module's weight [out, in], whatever it is for.

    Of convolutions [out, in / groups, k, ...], of transposed ones [in, out / groups, k, ...]: each
    group is a linear map of its own. Of torch.nn.Bilinear [out, in1, in2], whose columns are the
    products of two inputs.
    """
    if has_class(module, _HF_CONV1D):
        return [TRANSPOSE]
    if isinstance(module, (nn.Bilinear, *CONVOLUTIONS)):
        return [FLATTEN, *heads(getattr(module, "groups", 1), -2)]
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        return [FLATTEN, *heads(module.groups, -2), TRANSPOSE]
    return []


def heads(n: int, dim: int) -> list[dict]:
    """The layout that makes n equal parts along `dim` a batch."""
    return [{"heads": n, "dim": dim}] if n > 1 else []


def logical_shape(linear: nn.Module) -> tuple[int, ...]:
    """[out, in] of a linear map; () if it has not one matrix."""
    weight = weight_of(linear)
    shape = () if weight is None else tuple(weight.shape)
    if has_class(linear, _HF_CONV1D):
        return shape[::-1]
    return shape[:2] if isinstance(linear, CONVOLUTIONS) else shape


def is_gain(module: nn.Module) -> bool:
    """Whether the module's tensor, of however many dimensions, has one factor for each feature."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or has_class(module, _LORA_GAINS)


def is_embedding(module: nn.Module) -> bool:
    """Whether the module is a lookup table: torch's, or one that is called so and has one matrix of
    the width that its own numbers repeat (Megatron's VocabParallelEmbedding)."""
    if isinstance(module, _EMBEDDINGS):
        return True
    width = getattr(module, "embedding_dim", None)
    if "Embedding" not in type(module).__name__ or not isinstance(width, int):
        return False
    held = [p for p in module._parameters.values() if p is not None]
    return len(held) == 1 and held[0].ndim == 2 and held[0].shape[1] == width


def has_one_weight(module: nn.Module) -> bool:
    """Whether modules of this type have one weight of two or more dimensions."""
    kinds = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Bilinear)
    return is_linear(module) or is_embedding(module) or isinstance(module, kinds)


def has_class(thing, paths: set[str]) -> bool:
    """Whether one of these classes is the thing's or an ancestor of it.

    By path, so that no library need be imported; with ancestors, because FSDP2 and
    parametrizations swap a module's class for a subclass of it.
    """
    return any(f"{kind.__module__}.{kind.__qualname__}" in paths for kind in type(thing).__mro__)


def class_name(module: nn.Module) -> str:
    """The name of the class as its author wrote it, under parametrizations and FSDP2 too."""
    if parametrize.is_parametrized(module):
        return type(module).__mro__[1].__name__
    return type(module).__name__.removeprefix("FSDP")


def _own_config(module: nn.Module):
    """transformers' config, or an object of one's own under one of the usual names."""
    held = vars(module)
    own = (held.get(name) for name in ("config", "cfg", "args", "hparams", "params"))
    plain = (v for v in own if hasattr(v, "__dict__") and not isinstance(v, _NO_CONFIGS))
    return next((v for v in held.values() if has_class(v, _HF_CONFIGS)), next(plain, None))


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the module itself holds, in order; a parametrised one as its parts."""
    found = [(name, p) for name, p in module._parameters.items() if p is not None]
    lists = getattr(module, "parametrizations", None)
    if lists is not None and parametrize.is_parametrized(module):
        for name, parts in lists._modules.items():
            for key, p in parts._parameters.items() if parts is not None else ():
                if p is not None:
                    found.append((f"parametrizations.{name}.{key}", p))
    return found


def weight_of(module: nn.Module) -> nn.Parameter | None:
    """The tensor that a module's weight is or is made of: under weight_norm its direction, under
    spectral_norm and orthogonal what they change. None without one that has the weight's shape."""
    parameters = dict(own_parameters(module))
    for name in ("weight", "weight_v", "weight_orig"):
        if name in parameters and parameters[name].ndim >= 2:
            return parameters[name]
    parts = [p for p in parameters.values() if p.ndim >= 2]
    if parametrize.is_parametrized(module):
        try:
            shape = module.weight.shape
        except Exception:  # a parametrization that cannot be computed here
            return None
        parts = [p for p in parts if p.shape == shape][-1:]  # of weight_norm lengths come first
    return parts[0] if len(parts) == 1 else None


def is_part_of_weight(place: Place) -> bool:
    """Whether the module holds parts from which another makes its weight, and speaks for them."""
    path = {"torch.nn.utils.parametrize.ParametrizationList"}
    if not has_class(place.module, path):
        return False
    users = [user for user, _ in place.users] + [u for p, _ in place.users for u, _ in p.users]
    return any(parametrize.is_parametrized(user.module) for user in users)


def calls(module: nn.Module, *names: str, methods: Callable[[str], bool] = lambda m: True) -> bool:
    """Whether a method of the module's class names one of these in its code."""
    return any(
        not set(names).isdisjoint(code.co_names)
        for kind in type(module).__mro__
        if kind.__module__.split(".")[0] != "torch"
        for code in _codes(kind, methods)
    )


def _codes(kind: type, methods: Callable[[str], bool]) -> Iterator:
    for name, value in vars(kind).items():
        code = getattr(value, "__code__", None)
        if code is not None and methods(name):
            yield code
