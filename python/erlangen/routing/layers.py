"""What the type of a layer says about its parameters, whatever it is for."""

import re
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from . import modules, numbers
from .findings import DECLARED, RECOGNISED, Finding, assumed
from .modules import Place, heads
from .patterns import DISTANCES, GAINS, NORM_CLASSES, TABLES_OF_NUMBERS, VECTORS

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def judge(place: Place) -> Iterator[tuple[nn.Parameter, Finding]]:
    """Every tensor that the module holds itself, with what its type says."""
    module = place.module
    weight = modules.weight_of(module) if modules.has_one_weight(module) else None
    for name, parameter in modules.own_parameters(module):
        if place.is_adapter and parameter.ndim >= 2 and not modules.is_gain(module):
            yield parameter, Finding("lora", DECLARED, "a low-rank adapter")
        elif parameter.ndim < 2 or _is_vector(parameter):
            yield parameter, Finding("other", DECLARED, "a vector")
        elif parameter is weight:
            yield parameter, _judge_weight(place)
        else:
            yield parameter, _judge_tensor(place, name, parameter)


def _is_vector(parameter: nn.Parameter) -> bool:
    """A gain [C, 1, 1], a class token [1, 1, d]: at most one of its sizes is not 1."""
    return parameter.ndim > 2 and sum(size != 1 for size in parameter.shape) <= 1


def _judge_weight(place: Place) -> Finding:
    module = place.module
    if modules.is_embedding(module):
        return _judge_table(place)
    for user, name in place.users:
        if isinstance(user.module, nn.MultiheadAttention) and name == "out_proj":
            if modules.is_linear(module):
                n = user.module.num_heads
                return Finding("attention", DECLARED, "torch.nn.MultiheadAttention", heads(n, -1))
    if isinstance(module, nn.Bilinear):
        return Finding("dense", DECLARED, "torch.nn.Bilinear", modules.storage(module))
    if isinstance(module, modules.CONVOLUTIONS + modules.TRANSPOSED_CONVOLUTIONS):
        return _judge_convolution(module)
    return assumed("dense", f"a {modules.class_name(module)}", modules.storage(module))


def _judge_table(place: Place) -> Finding:
    """One number for each head, as a bias by distance has, is no vector that could be rotated."""
    things = [user.module for user, _ in place.users] + [place.config]
    heads_around = {numbers.of(thing).get("heads") for thing in things} - {None}
    width = numbers.read(place.config, *numbers.WIDTHS)
    columns = place.module.embedding_dim
    is_named = any(re.search(DISTANCES, name) for _, name in place.users)
    if columns in heads_around and columns != width:
        why = "one number for each attention head"
        return Finding("other", RECOGNISED, why) if is_named else assumed("other", why)
    if is_named and not heads_around:
        return assumed("embedding", "a lookup table, if not of one number for each head")
    return Finding("embedding", DECLARED, "a lookup table")


def _judge_convolution(module: _ConvNd) -> Finding:
    """A depthwise kernel maps no channel to another, it is one filter a channel: not a matrix, and
    none of the matrices' symmetries."""
    groups = module.groups
    transposed = isinstance(module, modules.TRANSPOSED_CONVOLUTIONS)
    if groups > 1 and module.in_channels == groups:
        if not transposed or module.out_channels == groups:
            return Finding("other", DECLARED, "a filter for each channel")
    layout = modules.storage(module)
    if all(size == 1 for size in module.kernel_size) and groups == 1 and not transposed:
        return assumed("dense", "a convolution of single points", layout)
    # Whatever it is for: what mixes neighbours is none of the other roles.
    return Finding("dense", DECLARED, "a convolution", layout)


def _judge_tensor(place: Place, name: str, parameter: nn.Parameter) -> Finding:
    module, shape = place.module, tuple(parameter.shape)
    kind = modules.class_name(module)
    if modules.is_gain(module):
        return Finding("other", DECLARED, "gains of a norm")
    if re.search(NORM_CLASSES, kind) and not numbers.stated(place).isdisjoint(shape):
        return Finding("other", RECOGNISED, f"gains of a {kind}")
    if isinstance(module, _RECURRENT):
        return _judge_recurrent(module, parameter)
    if isinstance(module, nn.MultiheadAttention):
        return _judge_multihead_attention(module, parameter)
    if name.startswith("parametrizations.weight."):
        return Finding(
            "other", DECLARED, "part of a parametrization that has not the weight's shape"
        )
    leaf = name.rsplit(".", 1)[-1]
    # A square could be a matrix for all that its name says.
    is_square = parameter.ndim == 2 and shape[0] == shape[1]
    for pattern, why, fits in (
        (VECTORS, "bias", parameter.ndim == 2),
        (GAINS, "gains", not is_square),
        (TABLES_OF_NUMBERS, "numbers", True),
    ):
        if fits and re.search(pattern, leaf):
            if numbers.stated(place).isdisjoint(shape):
                return assumed("other", f"{why} by the name {leaf} alone, {list(shape)}")
            return Finding("other", RECOGNISED, f"{why}, by the name {leaf}")
    return assumed("other", f"a tensor of {kind} itself, {list(shape)}")


def _judge_recurrent(module: nn.RNNBase | nn.RNNCellBase, parameter: nn.Parameter) -> Finding:
    gates = 1
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        gates = 4
    elif isinstance(module, (nn.GRU, nn.GRUCell)):
        gates = 3
    # An LSTM's projection has no gates.
    has_gates = parameter.shape[0] == gates * module.hidden_size
    layout = heads(gates, -2) if has_gates else []
    return Finding("dense", DECLARED, "of a recurrent layer", layout)


def _judge_multihead_attention(module: nn.MultiheadAttention, parameter: nn.Parameter) -> Finding:
    why = "torch.nn.MultiheadAttention"
    # q, k, v apart or one above the other: the heads of each are equal parts of the rows.
    count, rest = divmod(parameter.shape[0] * module.num_heads, module.embed_dim)
    if rest:
        return assumed("attention", f"{why}, whose rows are no multiple of its width")
    return Finding("attention", DECLARED, why, heads(count, -2))
