"""How the tables of further models are written, and what in a model's groups contradicts one.

A table maps a parameter's name ("*" for a number) to its role, and to its layout if it has one.
It lists every trainable tensor of two or more dimensions; all others must be "other". A tuple of
roles: each is right. Layouts are compared by the matrices that they make of a tensor, so that the
order of the steps does not matter.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers
from expected_families import FLAT
from expected_roles import columns, rows
from oracles import logical_matrices
from torch import nn

ODD = "odd"


def odd(role="dense", layout=None):
    """A matrix of one model only: it may be assumed.

    Then it is dense, or its parts are taken together where the code has several in one tensor; a
    raw tensor may be left to "other" if the table says so.
    """
    return (role, layout, ODD)


CONV = odd(layout=[FLAT])  # a convolution is known by its type
PATCHES = ("dense", [FLAT])
TABLE = ("embedding",)
OTHER = ("other",)
HEAD = {"lm_head.weight": ("lm_head",)}


@dataclass(frozen=True)
class Case:
    """A model's table; of heads and routers, whether the shared shift is a symmetry."""

    build: Callable[[], nn.Module]
    table: dict[str, tuple]
    center: dict[str, bool] = field(default_factory=dict)

    def model(self):
        """On the meta device: nothing here reads a number."""
        with torch.device("meta"):
            return self.build()

    def entry(self, name):
        """The role (or roles), the layout, and whether it may be assumed."""
        found = [v for pattern, v in self.table.items() if matches(pattern, name)]
        assert len(found) == 1, f"{name}: {len(found)} entries in the table"
        role, layout, *more = (*found[0], None)[:2] + found[0][2:]
        return ((role,) if isinstance(role, str) else role), layout, more == [ODD]


def matches(pattern, name):
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name)


def matrices(model):
    """The tensors that a table lists. Empty ones have no role."""
    named = model.named_parameters()
    return {name: p for name, p in named if p.requires_grad and p.ndim > 1 and p.numel()}


def parts(layout, shape):
    return {tuple(map(tuple, index.tolist())) for index in logical_matrices(layout, tuple(shape))}


def is_coarser(layout, finest, shape):
    """Whether every logical matrix is made of whole ones of the finest split."""
    fine = [frozenset(index.flatten().tolist()) for index in logical_matrices(finest, tuple(shape))]
    coarse = [set(index.flatten().tolist()) for index in logical_matrices(layout, tuple(shape))]
    return all(sum(len(p) for p in fine if p <= whole) == len(whole) for whole in coarse)


def contradiction(case, name, parameter, role, layout):
    """What is wrong with a parameter's role and layout; None if nothing is."""
    if parameter.ndim < 2:
        return None if (role, layout) == ("other", None) else f"{name}: a vector is {role}"
    roles, expected, is_odd = case.entry(name)
    said = f"{name} {list(parameter.shape)}: {role} {layout}, not {'/'.join(roles)} {expected}"
    if role not in (*roles, "dense") if is_odd else role not in roles:
        return said
    if role == "other":
        return None if layout is None else said
    if parts(layout, parameter.shape) == parts(expected, parameter.shape):
        return None
    is_convolution = roles == ("dense",) and parameter.ndim > 2  # known by its type
    if is_odd and not is_convolution and is_coarser(layout, expected, parameter.shape):
        return None
    return said


# What many tables share


def heads(prefix, queries, keys=None, names="q_proj k_proj v_proj o_proj"):
    """Queries, keys, values and output, each a Linear."""
    q, k, v, o = (f"{prefix}{name}.weight" for name in names.split())
    kv = ("attention", rows(keys or queries))
    return {
        q: ("attention", rows(queries)),
        k: kv,
        v: kv,
        o: ("attention", columns(queries)),
    }


def mlp(prefix, names):
    """One or two ways in, and the last way out."""
    *into, out = (f"{prefix}{name}.weight" for name in names.split())
    return dict.fromkeys(into, ("mlp_in",)) | {out: ("mlp_out",)}


def weights(entry, *names):
    """Several names with the same entry."""
    return {f"{name}.weight": entry for name in names}


def from_config(name, **config):
    """A model of transformers."""
    kind = getattr(transformers, name)
    return lambda: kind(kind.config_class(**config))


# Sizes: d 24, 4 heads, 2 for keys and values, of 8 where a head's size is free (else 6), MLP 40,
# 56 tokens. 5 or 6 experts of 14.
IDS = dict(bos_token_id=1, eos_token_id=1, pad_token_id=0)
BASE = dict(vocab_size=56, hidden_size=24, intermediate_size=40, num_hidden_layers=2)
BASE |= dict(num_attention_heads=4, tie_word_embeddings=False, **IDS)
GROUPED = BASE | dict(num_key_value_heads=2)
FREE = GROUPED | dict(head_dim=8)
GPT = dict(vocab_size=56, n_embd=24, n_layer=2, n_head=4, n_inner=40, n_positions=20)
GPT |= dict(tie_word_embeddings=False, **IDS)
