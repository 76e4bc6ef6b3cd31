"""The words in which modelling classes are described: slots, blocks, and sizes by config."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TRANSPOSE = {"transpose": True}
FLATTEN = {"flatten": True}


def heads(n: int, dim: int) -> dict:
    """The layout step that makes n equal parts along `dim` a batch."""
    return {"heads": n, "dim": dim}


def sections(*sizes: int, dim: int = -2) -> dict:
    """The layout step that makes each of the unequal parts along `dim` a matrix of its own."""
    return {"sections": list(sizes), "dim": dim}


def _nothing(config) -> Any:
    return None


@dataclass(frozen=True)
class Slot:
    """One part of a modelling class. The functions take the nearest config."""

    name: str  # the attribute in the modelling code
    role: str
    # As stored; [out, in] for every linear map. None in place of a size: any.
    shape: Callable[[Any], tuple[int | None, ...]] | None
    layout: Callable[[Any], list | None] = _nothing
    options: Callable[[Any], dict | None] = _nothing  # where they differ from the role's own


@dataclass(frozen=True)
class Block:
    """A modelling class: its linear children, the lookup tables among its children, and its own
    tensors of two or more dimensions. Tables that are embeddings need no slot."""

    linears: tuple[Slot, ...] = ()
    tables: tuple[Slot, ...] = ()
    parameters: tuple[Slot, ...] = ()


# Sizes by config


def text(config):
    """The language part of a composite config; any other config itself."""
    return config.get_text_config()


def head_dim(config) -> int:
    """The size of a query head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def kv_heads(config) -> int:
    """The number of heads of keys and values."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def q_shape(config):
    return (config.num_attention_heads * head_dim(config), config.hidden_size)


def kv_shape(config):
    return (kv_heads(config) * head_dim(config), config.hidden_size)


def o_shape(config):
    return q_shape(config)[::-1]


def square(config):
    return (config.hidden_size, config.hidden_size)


def experts(config) -> int:
    """The number of routed experts."""
    count = getattr(config, "num_local_experts", None)
    return config.num_experts if count is None else count


# When the shared shift is no symmetry

_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_HEAD_Z_LOSSES = ("z_loss_coefficient",)
_ROUTER_Z_LOSSES = ("router_z_loss_coef",)


def _uncentered_if(config, *names: str) -> dict | None:
    return {"center": False} if any(getattr(config, name, None) for name in names) else None


def head_options(config) -> dict | None:
    """No centering where the loss sees a shift that all vocabulary logits share."""
    return _uncentered_if(text(config), *_SOFT_CAPS, *_HEAD_Z_LOSSES)


def softmax_router_options(config) -> dict | None:
    """No centering where a loss sees a shift that all experts' logits share."""
    return _uncentered_if(config, *_ROUTER_Z_LOSSES)


def sigmoid_router_options(config) -> dict | None:
    """Each expert's score stands alone: nothing is shared."""
    return {"center": False}


# Parts that families have in common


def q_slot(name: str) -> Slot:
    return Slot(name, "attention", q_shape, lambda c: [heads(c.num_attention_heads, -2)])


def kv_slot(name: str) -> Slot:
    return Slot(name, "attention", kv_shape, lambda c: [heads(kv_heads(c), -2)])


def o_slot(name: str) -> Slot:
    return Slot(name, "attention", o_shape, lambda c: [heads(c.num_attention_heads, -1)])


def attention(q: str, k: str, v: str, *o: str, tables: tuple[Slot, ...] = ()) -> Block:
    """Queries, keys and values apart, and the output map unless another class holds it."""
    slots = (q_slot(q), kv_slot(k), kv_slot(v), *(o_slot(name) for name in o))
    return Block(linears=slots, tables=tables)


def _width(config) -> int:
    return config.intermediate_size


def gated_mlp(gate: str, up: str, down: str, width: Callable[[Any], int] = _width) -> Block:
    return Block(
        linears=(
            Slot(gate, "mlp_in", lambda c: (width(c), c.hidden_size)),
            Slot(up, "mlp_in", lambda c: (width(c), c.hidden_size)),
            Slot(down, "mlp_out", lambda c: (c.hidden_size, width(c))),
        )
    )


def two_layer_mlp(first: str, second: str, width: Callable[[Any], int] = _width) -> Block:
    return Block(
        linears=(
            Slot(first, "mlp_in", lambda c: (width(c), c.hidden_size)),
            Slot(second, "mlp_out", lambda c: (c.hidden_size, width(c))),
        )
    )


def concatenated_experts(width: Callable[[Any], int]) -> Block:
    """Stacks [E, 2r, d], of each expert all gates and then all ups, and [E, d, r]."""
    return Block(
        parameters=(
            Slot(
                "gate_up_proj",
                "expert_in",
                lambda c: (experts(c), 2 * width(c), c.hidden_size),
                lambda c: [heads(2, -2)],
            ),
            Slot("down_proj", "expert_out", lambda c: (experts(c), c.hidden_size, width(c))),
        )
    )


def router(options: Callable[[Any], dict | None]) -> Block:
    """A map onto the experts' logits."""
    slot = Slot("weight", "router", lambda c: (experts(c), c.hidden_size), options=options)
    return Block(parameters=(slot,))


def dense(name: str, shape: Callable[[Any], tuple[int | None, ...]]) -> Block:
    """One linear map without a structure of its own."""
    return Block(linears=(Slot(name, "dense", shape),))


def labels(name: str) -> Block:
    """A linear map onto the labels of a classification."""
    return dense(name, lambda c: (c.num_labels, text(c).hidden_size))


def vocabulary(name: str) -> Block:
    """A linear map onto the vocabulary."""
    slot = Slot(name, "lm_head", lambda c: (text(c).vocab_size, None), options=head_options)
    return Block(linears=(slot,))
