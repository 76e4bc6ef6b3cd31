"""Module trees that C++ and Python build alike (tests/cpp/routing_cases.cpp): what people write
without a library's config. An entry is a path, a torch.nn class with its sizes (or another word: a
class of the user's own), "Parameter" with a shape, "same" or "tied" with the path of another."""

from functools import cache

import torch
from torch import nn

D, F, V, E = 8, 24, 40, 3  # width, neurons, tokens, experts

_TYPES = {
    "Sequential": lambda: nn.Sequential(),
    "ModuleList": lambda: nn.ModuleList(),
    "Linear": nn.Linear,
    "Bilinear": nn.Bilinear,
    "Embedding": nn.Embedding,
    "EmbeddingBag": nn.EmbeddingBag,
    "LayerNorm": lambda *shape: nn.LayerNorm(shape),
    "BatchNorm2d": nn.BatchNorm2d,
    "GroupNorm": nn.GroupNorm,
    "Conv1d": lambda i, o, k, groups: nn.Conv1d(i, o, k, groups=groups),
    "Conv2d": lambda i, o, k, groups: nn.Conv2d(i, o, k, groups=groups),
    "ConvTranspose2d": lambda i, o, k, groups: nn.ConvTranspose2d(i, o, k, groups=groups),
    "MultiheadAttention": lambda d, heads, kd: nn.MultiheadAttention(
        d, heads, kdim=kd, vdim=kd, add_bias_kv=True
    ),
    "TransformerEncoderLayer": nn.TransformerEncoderLayer,
    "TransformerDecoderLayer": nn.TransformerDecoderLayer,
    "LSTM": lambda i, h, p: nn.LSTM(i, h, proj_size=p, bidirectional=True),
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "GRUCell": nn.GRUCell,
    "Softmax": nn.Softmax,
}


@cache
def _own_class(name):
    return type(name, (nn.Module,), {})


def build(kind, entries):
    """The model, of a class of this name."""
    root = _own_class(kind)()
    for path, what, sizes in entries:
        parent, _, name = path.rpartition(".")
        parent = root.get_submodule(parent)
        if what == "Parameter":
            parent.register_parameter(name, nn.Parameter(torch.randn(sizes)))
            continue
        if what in ("same", "tied"):
            module = root.get_submodule(sizes)
            if what == "tied":
                table, module = module, nn.Linear(D, V, bias=False)
                module.weight = table.weight
        elif what in _TYPES:
            module = _TYPES[what](*sizes)
        else:
            module = _own_class(what)()
        parent.add_module(name, module)
    return root


def _linears(path, **shapes):
    return [(f"{path}.{name}", "Linear", [i, o]) for name, (o, i) in shapes.items()]


def _llama(output="output", table="tok_embeddings", rows=V):
    return [
        (table, "Embedding", [V, D]),
        ("layers", "ModuleList", []),
        *[
            entry
            for layer in ("layers.0", "layers.1")
            for entry in [
                (layer, "TransformerBlock", []),
                (f"{layer}.attention", "Attention", []),
                *_linears(f"{layer}.attention", wq=(D, D), wk=(4, D), wv=(4, D), wo=(D, D)),
                (f"{layer}.feed_forward", "FeedForward", []),
                *_linears(f"{layer}.feed_forward", w1=(F, D), w2=(D, F), w3=(F, D)),
                (f"{layer}.attention_norm", "LayerNorm", [D]),
            ]
        ],
        ("norm", "LayerNorm", [D]),
        (output, "Linear", [D, rows]),
    ]


def _nano_gpt(head):
    return [
        ("transformer", "Body", []),
        ("transformer.wte", "Embedding", [V, D]),
        ("transformer.wpe", "Embedding", [16, D]),
        ("transformer.h", "ModuleList", []),
        ("transformer.h.0", "Block", []),
        ("transformer.h.0.attn", "CausalSelfAttention", []),
        *_linears("transformer.h.0.attn", c_attn=(3 * D, D), c_proj=(D, D)),
        ("transformer.h.0.mlp", "MLP", []),
        *_linears("transformer.h.0.mlp", c_fc=(4 * D, D), c_proj=(D, 4 * D)),
        head,
    ]


def _mixture(gate="gate", count=E):
    return [
        ("embed", "Embedding", [V, D]),
        ("moe", "MoE", []),
        (f"moe.{gate}", "Linear", [D, count]),
        ("moe.experts", "ModuleList", []),
        *[
            entry
            for i in range(E)
            for entry in [
                (f"moe.experts.{i}", "FeedForward", []),
                *_linears(f"moe.experts.{i}", w1=(F, D), w2=(D, F), w3=(F, D)),
            ]
        ],
        ("last", "Linear", [D, 5]),
    ]


_NETWORK = [
    ("stem", "Conv2d", [3, 8, 3, 1]),
    ("grouped", "Conv2d", [8, 16, 3, 4]),
    ("depthwise", "Conv1d", [4, 8, 3, 4]),
    ("up", "ConvTranspose2d", [8, 4, 2, 2]),
    ("depthwise_up", "ConvTranspose2d", [4, 4, 2, 4]),
    ("points", "Conv2d", [8, 12, 1, 1]),
    ("block", "Block", []),
    ("block.conv", "Conv2d", [8, 12, 1, 1]),
    ("block.norm", "BatchNorm2d", [12]),
    ("block.gamma", "Parameter", [12, 1, 1]),
    ("block.scale", "Parameter", [12, 2]),
    ("map_norm", "LayerNorm", [4, 8]),
    ("groups", "GroupNorm", [2, 8]),
    ("pair", "Bilinear", [3, 4, 5]),
    ("bag", "EmbeddingBag", [V, D]),
]
_VISION = [
    ("patch_embed", "PatchEmbed", []),
    ("patch_embed.proj", "Conv2d", [3, D, 4, 1]),
    ("cls_token", "Parameter", [1, 1, D]),
    ("pos_embed", "Parameter", [1, 17, D]),
    ("other_pos_embed", "Parameter", [1, 17, D + 1]),
    ("mixing", "Parameter", [6, 6]),
    ("rel_pos_bias", "Parameter", [4, 9]),
    ("blocks", "Sequential", []),
    ("blocks.0", "Block", []),
    ("blocks.0.attn", "Attention", []),
    *_linears("blocks.0.attn", qkv=(3 * D, D), proj=(D, D)),
    ("blocks.0.mlp", "Mlp", []),
    *_linears("blocks.0.mlp", fc1=(F, D), fc2=(D, F)),
    ("blocks.0.norm1", "LayerNorm", [D]),
    ("head", "Linear", [D, 10]),
]
_TORCH = [
    ("encoder", "TransformerEncoderLayer", [D, 2, F]),
    ("decoder", "TransformerDecoderLayer", [D, 2, F]),
    ("attention", "MultiheadAttention", [D, 2, D]),
    ("cross", "MultiheadAttention", [D, 4, 6]),
    ("lstm", "LSTM", [D, 6, 4]),
    ("gru", "GRU", [D, 6]),
    ("rnn", "RNN", [D, 6]),
    ("cell", "GRUCell", [D, 6]),
]
_SHARED = [
    ("table", "Embedding", [V, D]),
    ("a", "MLP", []),
    *_linears("a", first=(F, D), second=(D, F)),
    ("again", "same", "a"),
    ("b", "Holder", []),
    ("b.inner", "same", "a.first"),
    ("chain", "MLP", []),
    *_linears("chain", x=(12, D), y=(20, 12), z=(6, 20)),
    ("three", "MLP", []),
    *_linears("three", x=(D, D), y=(D, D), z=(D, D)),
    ("gated", "GatedMlp", []),
    *_linears("gated", x=(F, D), y=(F, D), z=(D, F)),
    ("outer", "Holder", []),
    ("outer.mlp", "Sequential", []),
    ("outer.mlp.0", "Linear", [D, F]),
    ("outer.mlp.2", "Linear", [F, D]),
]
_TITAN = [
    ("attention", "GQAttention", []),
    ("attention.qkv_linear", "QKVLinear", []),
    *_linears("attention.qkv_linear", wq=(D, D), wk=(4, D), wv=(4, D)),
    ("attention.wo", "Linear", [D, D]),
    ("fused", "FusedAttention", []),
    ("fused.qkv_linear", "FusedQKVLinear", []),
    ("fused.qkv_linear.wqkv", "Linear", [D, 3 * D]),
    ("fused.wo", "Linear", [D, D]),
    ("router", "Linear", [D, E]),
    ("experts", "GroupedExperts", []),
    ("experts.w1_EFD", "Parameter", [E, F, D]),
    ("experts.w3_EFD", "Parameter", [E, F, D]),
    ("experts.w2_EDF", "Parameter", [E, D, F]),
    ("block", "Block", []),
    ("block.router", "Linear", [D, E]),
    ("block.experts", "GroupedExperts", []),  # square: their names say which way round
    ("block.experts.w1_EFD", "Parameter", [E, D, D]),
    ("block.experts.w3_EFD", "Parameter", [E, D, D]),
    ("block.experts.w2_EDF", "Parameter", [E, D, D]),
]
_STACKS = [
    ("router", "Linear", [D, E]),
    ("experts", "Experts", []),
    ("experts.gate_up_proj", "Parameter", [E, 2 * F, D]),
    ("experts.down_proj", "Parameter", [E, D, F]),
    ("other", "Moe", []),
    ("other.gate", "Linear", [D, E]),
    ("other.experts", "Experts", []),
    ("other.experts.w1", "Parameter", [E, D, F]),
    ("other.experts.w2", "Parameter", [E, F, D]),
    ("lonely", "Experts", []),
    ("lonely.w1", "Parameter", [5, D, F]),
    ("lonely.w2", "Parameter", [5, F, D]),
]

# Names of conventions with shapes that no sizes give: nothing is recognised.
_CONTRADICTIONS = [
    ("a", "Attention", []),
    *_linears("a", q_proj=(64, 10), k_proj=(7, 3), v_proj=(13, 5), o_proj=(9, 11)),
    ("b", "CausalSelfAttention", []),
    *_linears("b", c_attn=(17, 10), c_proj=(5, 3)),
    ("c", "Attention", []),
    *_linears("c", qkv=(17, 10)),
    ("d", "Attention", []),
    *_linears("d", qkv=(20, 8), proj=(8, 6)),  # 6 of queries, and 7 of keys
    ("e", "ActorMLP", []),
    *_linears("e", pi=(16, 8), v=(8, 8)),
    ("f", "Attention", []),
    *_linears("f", q_proj=(16, 8), k_proj=(12, 8), v_proj=(12, 8), o_proj=(8, 16)),
]
# What looks like something else.
_LOOKALIKES = [
    ("attention", "MultiheadAttention", [D, 2, D]),
    ("attention.extra", "Linear", [7, 5]),
    ("attention.holder", "Holder", []),
    ("attention.holder.scale", "Parameter", [D, 3]),
    ("attention.holder.gain", "Parameter", [D, D]),
    ("relative_attention_bias", "Embedding", [32, 12]),
    ("distance", "Embedding", [32, 2]),
    ("attention.table", "same", "distance"),
    ("proj", "ScaledLinear", []),
    ("proj.scale", "Parameter", [4]),
    ("proj.inner", "Linear", [D, 4]),
]

TREES = {
    "llama": _llama(),
    "llama_padded": _llama(rows=V + 8),
    "llama_by_shape": _llama("classify", "table"),
    "llama_smaller": _llama(rows=V - 1),
    "llama_by_head": _llama("lm_head", "table"),
    "llama_beside_tokens": _llama("head"),
    "llama_beside_others": _llama("head", "table", rows=V + 8),
    "titan": _TITAN,
    "mixture": _mixture(),
    "mixture_named": _mixture("router"),
    "mixture_beside_softmax": [*_mixture(), ("moe.scores", "Softmax", [1])],
    "mixture_beside_softmax_of_tokens": [*_mixture(), ("moe.scores", "Softmax", [0])],
    "mixture_of_another_number": _mixture(count=E + 1),
    "nano_gpt": _nano_gpt(("lm_head", "Linear", [D, V])),
    "nano_gpt_tied": _nano_gpt(("lm_head", "tied", "transformer.wte")),
    "square": [("embed", "Embedding", [D, D]), ("last", "Linear", [D, D])],
    "network": _NETWORK,
    "vision": _VISION,
    "torch": _TORCH,
    "shared": _SHARED,
    "stacks": _STACKS,
    "contradictions": _CONTRADICTIONS,
    "lookalikes": _LOOKALIKES,
    "classifier_of_tokens": _llama("head", rows=1000),
    "n_gram": [
        ("embeddings", "Embedding", [97, 16]),
        *[("linear1", "Linear", [32, 16]), ("linear2", "Linear", [16, 97])],
    ],
    "chain_to_a_head": [
        ("wte", "Embedding", [V, D]),
        ("fc1", "Linear", [D, D]),
        ("fc2", "Linear", [D, V]),
    ],
}

# What the caller says: overrides, and adjust_lr_fn.
CHOICES = {
    "mixture_named": (
        {
            "moe.router.*": {"rule": "adamw"},
            "last.weight": {"role": "lm_head", "center": False},
            "expert_out": {"role": "dense", "weight_decay": 0.3},
        },
        "original",
    ),
    "llama": (
        {
            "*.wq.weight": {"layout": [{"heads": 2, "dim": -2}]},
            "layers.[0-9].attention.w[kv].weight": {"momentum": 0.5},
            "layers.?.attention.wo.weight": {"role": "other"},
            "norm.weight": {"rule": "spectral", "layout": [{"sections": [3, 5], "dim": -1}]},
            "mlp_in": {"adjust_lr_fn": "unit_rms_norm"},
            "output.*": {"rule": "adamw", "adjust_lr_fn": "none"},
        },
        "spectral_unclamped",
    ),
    "lookalikes": (
        {
            "proj.scale": {"weight_decay": 0.25},
            "proj.inner.weight": {"weight_decay": 0.5},
            "attention.table.weight": {"rule": "adamw"},
        },
        "match_rms_adamw",
    ),
    "shared": ({"again.*.weight": {"update_scale": 3.0}}, "none"),
    "network": (
        {
            "points.weight": {"role": "attention"},
            "up.weight": {"role": "embedding"},
            "grouped.weight": {"role": "router"},
            "block.conv.weight": {"layout": [{"flatten": True}, {"heads": 2, "dim": -2}]},
        },
        "original",
    ),
    "stacks": ({"other.experts.w1": {"role": "mlp_in"}}, "match_rms_adamw"),
}
