"""What each module of a model says about its own parameters.

Evidence, strongest first: the module's type and that of the module that encloses it, the config
with its head and expert counts, sharing, shapes. Names of attributes decide nothing, so renaming
them changes no role.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils import parametrize

from . import modules
from .modules import Place
from .slots import FLATTEN, TRANSPOSE, Block, Slot, head_options, heads

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Finding:
    """A role with its layout and the options in which it differs from the role's own.

    `role` is None where nothing sound remains; `why` then says what is missing, and `layout` is
    how the tensor is stored, for the override to be shown.
    """

    role: str | None
    layout: list = field(default_factory=list)
    options: dict = field(default_factory=dict)
    why: str = ""


def undecided(why: str, layout: list | None = None) -> Finding:
    """A finding that leaves the role to the caller."""
    return Finding(None, layout or [], why=why)


def collect(places: list[Place]) -> dict[int, list[tuple[Place, Finding]]]:
    """Every finding about every parameter, keyed by the parameter's id: one for each use."""
    claims = _output_embeddings(places)  # children that another module speaks for
    findings = {}
    for place in places:
        blocks = modules.blocks_of(place.module)
        claims |= _claim(place, [b.linears for b in blocks], modules.is_linear)
        claims |= _claim(place, [b.tables for b in blocks], modules.is_embedding)
        for parameter, finding in _judge(place, blocks, claims):
            findings.setdefault(id(parameter), []).append((place, finding))
    return findings


# Known classes

Parts = list[tuple[str, tuple[int, ...]]]  # name and shape


def _fill(ways: list[tuple[Slot, ...]], parts: Parts, config) -> list[Finding]:
    """One finding for each part: the slots' of the way that fits, or the reason why none does."""
    reasons = [_mismatch(slots, parts, config) for slots in ways]
    found = [
        [Finding(s.role, s.layout(config) or [], s.options(config) or {}) for s in slots]
        for slots, reason in zip(ways, reasons, strict=True)
        if reason is None
    ]
    why = "its class is built in several ways, and more than one fits"
    if not found:
        # The way with as many parts tells best what is wrong.
        same_number = [len(slots) == len(parts) for slots in ways]
        why = reasons[same_number.index(True) if any(same_number) else 0]
    if not found or any(other != found[0] for other in found):
        return [undecided(why)] * len(parts)
    return found[0]


def _mismatch(slots: tuple[Slot, ...], parts: Parts, config) -> str | None:
    if len(parts) != len(slots):
        return f"its module should define {len(slots)} such parts, not {len(parts)}"
    expected_names = [slot.name for slot in slots]
    for i, (slot, (name, shape)) in enumerate(zip(slots, parts, strict=True)):
        if name in expected_names and expected_names.index(name) != i:
            return f"the name {name!r} contradicts the order in which its class defines its parts"
        if slot.shape is None:
            continue
        if config is None:
            return "there is no config to say which shapes its module should have"
        try:
            expected = tuple(slot.shape(config))
        except AttributeError as error:
            return f"the config does not say which shapes its module should have ({error})"
        if len(shape) != len(expected) or any(
            size not in (None, actual) for size, actual in zip(expected, shape, strict=True)
        ):
            return f"by the config {name} should be {_sizes(expected)}, and is {list(shape)}"
    return None


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _claim(place: Place, ways: list[tuple[Slot, ...]], is_kind) -> dict[tuple, Finding]:
    """What a known class says about its children of one kind."""
    if not any(ways):
        return {}
    children = modules.children_of(place.module, is_kind)
    parts = [(name, _logical_shape(versions[0])) for name, versions in children]
    found = _fill(ways, parts, place.config)
    return {
        (id(place.module), id(version)): finding
        for (_, versions), finding in zip(children, found, strict=True)
        for version in versions
    }


def _logical_shape(module: nn.Module) -> tuple[int, ...]:
    matrix = modules.matrix_of(module)
    shape = () if matrix is None else tuple(matrix.shape)
    return shape[::-1] if modules.storage(module) else shape


def _output_embeddings(places: list[Place]) -> dict[tuple, Finding]:
    """The linear maps that get_output_embeddings() returns, if the config's vocabulary agrees."""
    found = {}
    for place in places:
        # Wrappers pass attributes on; what they wrap is asked itself.
        if not hasattr(type(place.module), "get_output_embeddings"):
            continue
        try:
            head = place.module.get_output_embeddings()
            vocabulary = place.config.get_text_config().vocab_size
        except (AttributeError, NotImplementedError):  # no head, or no vocabulary
            continue
        matrix = modules.matrix_of(head) if isinstance(head, nn.Linear) else None
        if matrix is not None and matrix.shape[0] == vocabulary:
            finding = Finding("lm_head", options=head_options(place.config) or {})
            found |= {(id(p.owner), id(head)): finding for p in places if p.module is head}
    return found


# Parameters


def _judge(
    place: Place, blocks: tuple[Block, ...], claims
) -> Iterator[tuple[nn.Parameter, Finding]]:
    module = place.module
    parameters = [p for _, p in modules.own_parameters(module)]
    matrices = modules.matrices_of(module)
    others = Finding("other")
    ways = [block.parameters for block in blocks]
    if place.is_adapter and not modules.is_gain(module):
        found = [Finding("lora")] * len(matrices)
    elif any(ways):
        found = _fill(ways, [(n, tuple(p.shape)) for n, p in matrices], place.config)
    elif _has_one_weight(module) and len(matrices) != 1:
        why = f"a {type(module).__qualname__} has one weight matrix, this one {len(matrices)}"
        found = [undecided(why)] * len(matrices)
        if not matrices and not parametrize.is_parametrized(module):
            others = undecided(why + ": a flattened shard?")
    else:
        found = [_judge_matrix(place, p, claims) for _, p in matrices]
    yield from ((p, finding) for (_, p), finding in zip(matrices, found, strict=True))
    yield from ((p, others) for p in parameters if p.ndim < 2)


def _has_one_weight(module: nn.Module) -> bool:
    is_convolution = isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED))
    is_map = modules.is_linear(module) or isinstance(module, nn.Bilinear)
    return is_convolution or is_map or modules.is_embedding(module)


def _judge_matrix(place: Place, parameter: nn.Parameter, claims) -> Finding:
    module = place.module
    try:
        if modules.is_linear(module):
            return _judge_linear(place, claims)
        if modules.is_embedding(module):
            return _judge_embedding(place, claims)
        if modules.is_gain(module):
            return Finding("other")
        if isinstance(module, _CONVOLUTIONS + _TRANSPOSED):
            return _judge_convolution(module)
        if isinstance(module, nn.Bilinear):
            # [out, in1, in2]: rows are outputs, columns the products of two inputs.
            return Finding("dense", [FLATTEN])
        if isinstance(module, _RECURRENT):
            return _judge_recurrent(module, parameter)
        if isinstance(module, nn.MultiheadAttention):
            return _judge_multihead_attention(module, parameter)
    except AttributeError as error:  # a count that the layout needs
        return undecided(str(error))
    if modules.has_class(module, {"torch.nn.utils.parametrize.ParametrizationList"}):
        return undecided("a parametrization makes the weight out of it")
    return undecided(f"it belongs to {type(module).__qualname__} itself: no type says what it is")


def _judge_embedding(place: Place, claims) -> Finding:
    claim = claims.get((id(place.owner), id(place.module)))
    if claim is not None:
        return claim
    if modules.in_library(place.owner, "peft."):
        return undecided(f"what {modules.in_library(place.owner)} does with it is not known")
    # One number a head, as a bias by distance has, is no vector whose features could be rotated.
    heads_of_model = getattr(place.config, "num_attention_heads", None)
    if modules.in_library(place.owner) and place.module.embedding_dim == heads_of_model:
        return undecided("it has one number for each attention head, as a bias by distance has")
    return Finding("embedding")


def _judge_linear(place: Place, claims) -> Finding:
    module, owner = place.module, place.owner
    storage = modules.storage(module)
    claim = claims.get((id(owner), id(module)))
    if claim is not None:
        return Finding(claim.role, storage + claim.layout, claim.options, claim.why)
    if isinstance(owner, nn.MultiheadAttention):
        return Finding("attention", [heads(owner.num_heads, -1)])
    if modules.in_library(owner):
        why = f"what {modules.in_library(owner)} does with it is not known"
        return undecided(why, storage)
    return Finding("dense", storage)


def _judge_convolution(module: nn.Module) -> Finding:
    """[out, in / groups, k, ...], transposed ones [in, out / groups, k, ...].

    Each group is a linear map of its own. A depthwise kernel maps no channel to another, it is one
    filter a channel: not a matrix, and none of the matrices' symmetries.
    """
    groups = module.groups
    transposed = isinstance(module, _TRANSPOSED)
    if groups > 1 and module.in_channels == groups:
        if not transposed or module.out_channels == groups:
            return Finding("other")
    layout = [FLATTEN]
    if groups > 1:
        layout.append(heads(groups, -2))
    if transposed:
        layout.append(TRANSPOSE)
    return Finding("dense", layout)


def _judge_recurrent(module: nn.Module, parameter: nn.Parameter) -> Finding:
    gates = 1
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        gates = 4
    elif isinstance(module, (nn.GRU, nn.GRUCell)):
        gates = 3
    rows = parameter.shape[0]
    if rows == gates * module.hidden_size:
        return Finding("dense", [heads(gates, -2)] if gates > 1 else [])
    if rows == getattr(module, "proj_size", None):
        return Finding("dense")
    return undecided(f"its {rows} rows are neither the gates nor the projection")


def _judge_multihead_attention(module: nn.Module, parameter: nn.Parameter) -> Finding:
    if parameter.ndim > 2:  # bias_k and bias_v, [1, 1, d]
        return Finding("other")
    # q, k, v apart or one above the other: the heads of each are equal parts of the rows.
    count, rest = divmod(parameter.shape[0] * module.num_heads, module.embed_dim)
    if rest:
        return undecided(f"its rows are no multiple of embed_dim {module.embed_dim}")
    return Finding("attention", [heads(count, -2)])
