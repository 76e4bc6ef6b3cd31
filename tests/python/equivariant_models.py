"""A small language model without gains and biases, and the maps that leave its function as it is.

Every map is linear on each weight, so it can be applied before a training or after it: an
optimizer is equivariant if both give the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, WIDTH = 24, 16
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 4
NEURONS = 12  # of the dense MLP
EXPERTS, TOP_K, EXPERT_NEURONS = 4, 2, 6
LENGTH = 12


def norm(x):
    """RMSNorm without gain: the only kind that every rotation of the hidden basis commutes with."""
    return F.rms_norm(x, (x.size(-1),), eps=1e-6)


def rope(x):
    """Turns the plane (i, i + HEAD_DIM/2) of each head by an angle that grows with the position."""
    half = HEAD_DIM // 2
    kwargs = {"dtype": x.dtype, "device": x.device}
    angle = torch.outer(torch.arange(x.size(-2), **kwargs), 0.3 ** torch.arange(half, **kwargs))
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Attention(nn.Module):
    """Causal, with fewer key and value heads than query heads."""

    def __init__(self, with_rope: bool):
        super().__init__()
        self.with_rope = with_rope
        self.q = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        self.k = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.v = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.o = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)

    def forward(self, x):
        by_head = (w(x).unflatten(-1, (-1, HEAD_DIM)) for w in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in by_head)
        if self.with_rope:
            q, k = rope(q), rope(k)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        scores = q @ k.mT / HEAD_DIM**0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, NEURONS, bias=False)
        self.up = nn.Linear(WIDTH, NEURONS, bias=False)
        self.down = nn.Linear(NEURONS, WIDTH, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def normal(*shape, fan_in):
    return nn.Parameter(torch.randn(*shape) * fan_in**-0.5)


class ConcatenatedExperts(nn.Module):
    """As in OLMoE: softmax, then top-k; gate_up [E, 2r, d] holds the gates, then the ups."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.gate_up = normal(EXPERTS, 2 * EXPERT_NEURONS, WIDTH, fan_in=WIDTH)
        self.down = normal(EXPERTS, WIDTH, EXPERT_NEURONS, fan_in=EXPERT_NEURONS)

    def forward(self, x):
        top = self.router(x).softmax(-1).topk(TOP_K)
        share = torch.zeros(*x.shape[:-1], EXPERTS, dtype=x.dtype, device=x.device)
        share = share.scatter(-1, top.indices, top.values)
        gate, up = torch.einsum("btd,erd->bter", x, self.gate_up).chunk(2, dim=-1)
        return torch.einsum("bter,edr,bte->btd", F.silu(gate) * up, self.down, share)


class InterleavedExperts(nn.Module):
    """As in gpt-oss: top-k, then softmax; [in, out]; gate_up [E, d, 2r], a gate beside its up."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.gate_up = normal(EXPERTS, WIDTH, 2 * EXPERT_NEURONS, fan_in=WIDTH)
        self.down = normal(EXPERTS, EXPERT_NEURONS, WIDTH, fan_in=EXPERT_NEURONS)

    def forward(self, x):
        top = self.router(x).topk(TOP_K)
        share = torch.zeros(*x.shape[:-1], EXPERTS, dtype=x.dtype, device=x.device)
        share = share.scatter(-1, top.indices, top.values.softmax(-1))
        gate_up = torch.einsum("btd,edr->bter", x, self.gate_up)
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        return torch.einsum("bter,erd,bte->btd", F.silu(gate) * up, self.down, share)


class Layer(nn.Module):
    def __init__(self, with_rope: bool, mlp: nn.Module):
        super().__init__()
        self.attention = Attention(with_rope)
        self.mlp = mlp

    def forward(self, x):
        x = x + self.attention(norm(x))
        return x + self.mlp(norm(x))


class Model(nn.Module):
    """One layer with each kind of MLP."""

    def __init__(self, with_rope: bool = True, tied: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        mlps = (MLP(), ConcatenatedExperts(), InterleavedExperts())
        self.layers = nn.ModuleList(Layer(with_rope, mlp) for mlp in mlps)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        with torch.no_grad():
            # The shared shift of router and head, which no rule but a centered one keeps, is not
            # small to begin with.
            for module in self.modules():
                for linear in (getattr(module, "router", None), getattr(module, "head", None)):
                    if linear is not None:
                        linear.weight += torch.randn(WIDTH) / 2
        if tied:
            self.head.weight = self.embedding.weight
        self.double()

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(norm(x))


# Roles: what routing finds in transformers' classes by itself has to be said of one's own

GATE_AND_UP = {"heads": 2, "dim": -2}
TRANSPOSE = {"transpose": True}
INTERLEAVED = {"pairs": "interleaved", "dim": -2}


def heads(n, dim):
    return [{"heads": n, "dim": dim}]


ROLES = {
    "*.q.weight": {"role": "attention", "layout": heads(HEADS, -2)},
    "*.[kv].weight": {"role": "attention", "layout": heads(KV_HEADS, -2)},
    "*.o.weight": {"role": "attention", "layout": heads(HEADS, -1)},
    "*.router.weight": {"role": "router"},
    "layers.0.mlp.gate.weight": {"role": "mlp_in"},
    "layers.0.mlp.up.weight": {"role": "mlp_in"},
    "layers.0.mlp.down.weight": {"role": "mlp_out"},
    "layers.1.mlp.gate_up": {"role": "expert_in", "layout": [GATE_AND_UP]},
    "layers.1.mlp.down": {"role": "expert_out"},
    "layers.2.mlp.gate_up": {
        "role": "expert_in",
        "layout": [TRANSPOSE, INTERLEAVED, {"heads": 2, "dim": -1}],
    },
    "layers.2.mlp.down": {"role": "expert_out", "layout": [TRANSPOSE]},
}


# Symmetries

Map = Callable[[torch.Tensor], torch.Tensor]


def identity(x):
    return x


@dataclass
class Symmetry:
    """Maps of weights by name (the others stay) and of token ids."""

    weights: dict[str, Map] = field(default_factory=dict)
    tokens: Map = identity
    with_rope: bool = True  # of the model that has it

    def of(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: self.weights.get(name, identity)(w) for name, w in weights.items()}


def take_rows(index, w):
    return torch.take_along_dim(w, index[..., None].to(w.device), dim=-2)


def take_columns(index, w):
    return take_rows(index, w.mT).mT


def take_experts(index, w):
    return w[index.to(w.device)]


def rotate_rows(r, w):
    return r.to(w.device) @ w


def rotate_columns(r, w):
    return w @ r.mT.to(w.device)


def permutations(generator, n, size):
    return torch.stack([torch.randperm(size, generator=generator) for _ in range(n)])


def orthogonal(generator, n, size):
    return torch.linalg.qr(
        torch.randn(n, size, size, generator=generator, dtype=torch.float64)
    ).Q.contiguous()


def permuted_vocabulary(g):
    (order,) = permutations(g, 1, VOCABULARY)
    place = order.argsort()  # where a token's row has gone
    rows = partial(take_rows, order)
    return Symmetry(
        {"embedding.weight": rows, "head.weight": rows}, lambda t: place.to(t.device)[t]
    )


def permuted_neurons(g):
    """Those of the dense MLP, and those of each expert in an order of its own."""
    (order,) = permutations(g, 1, NEURONS)
    first = permutations(g, EXPERTS, EXPERT_NEURONS)
    second = permutations(g, EXPERTS, EXPERT_NEURONS)
    gates_then_ups = torch.cat([first, first + EXPERT_NEURONS], dim=-1)
    neighbours = torch.stack([2 * second, 2 * second + 1], dim=-1).flatten(-2)
    return Symmetry(
        {
            "layers.0.mlp.gate.weight": partial(take_rows, order),
            "layers.0.mlp.up.weight": partial(take_rows, order),
            "layers.0.mlp.down.weight": partial(take_columns, order),
            "layers.1.mlp.gate_up": partial(take_rows, gates_then_ups),
            "layers.1.mlp.down": partial(take_columns, first),
            "layers.2.mlp.gate_up": partial(take_columns, neighbours),
            "layers.2.mlp.down": partial(take_rows, second),
        }
    )


def permuted_experts(g):
    maps = {}
    for layer, order in zip((1, 2), permutations(g, 2, EXPERTS), strict=True):
        mlp = f"layers.{layer}.mlp"
        maps[f"{mlp}.router.weight"] = partial(take_rows, order)
        maps[f"{mlp}.gate_up"] = maps[f"{mlp}.down"] = partial(take_experts, order)
    return Symmetry(maps)


def permuted_heads(g):
    """The groups that share a key and value head, and the query heads within each group."""
    maps = {}
    group = HEADS // KV_HEADS
    for layer in range(3):
        (kv,) = permutations(g, 1, KV_HEADS)
        q = (kv[:, None] * group + permutations(g, KV_HEADS, group)).flatten()
        q_rows, kv_rows = (
            (n[:, None] * HEAD_DIM + torch.arange(HEAD_DIM)).flatten() for n in (q, kv)
        )
        attention = f"layers.{layer}.attention"
        maps[f"{attention}.q.weight"] = partial(take_rows, q_rows)
        maps[f"{attention}.k.weight"] = maps[f"{attention}.v.weight"] = partial(take_rows, kv_rows)
        maps[f"{attention}.o.weight"] = partial(take_columns, q_rows)
    return Symmetry(maps)


def rotated_heads(g, with_rope: bool):
    """Queries and keys of a group by one matrix, values and what o makes of them by another.

    Under RoPE only rotations in its own planes leave queries and keys at all positions alike.
    """
    maps = {}
    for layer in range(3):
        for rows, columns in ((("q", "k"), ()), (("v",), ("o",))):
            turns = orthogonal(g, KV_HEADS, HEAD_DIM)
            if with_rope and "q" in rows:
                angles = 6.28 * torch.rand(KV_HEADS, HEAD_DIM // 2, generator=g).double()
                cos, sin = torch.diag_embed(angles.cos()), torch.diag_embed(angles.sin())
                turns = torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)
            of_kv = torch.block_diag(*turns)
            of_q = torch.block_diag(*turns.repeat_interleave(HEADS // KV_HEADS, dim=0))
            for name in rows:
                turn = of_q if name == "q" else of_kv
                maps[f"layers.{layer}.attention.{name}.weight"] = partial(rotate_rows, turn)
            for name in columns:
                maps[f"layers.{layer}.attention.{name}.weight"] = partial(rotate_columns, of_q)
    return Symmetry(maps, with_rope=with_rope)


def rotated_basis(g):
    (turn,) = orthogonal(g, 1, WIDTH)
    reads = partial(rotate_columns, turn)
    writes = partial(rotate_rows, turn)
    maps = {"embedding.weight": reads, "head.weight": reads}
    for layer in range(3):
        maps |= {f"layers.{layer}.attention.{name}.weight": reads for name in "qkv"}
        maps[f"layers.{layer}.attention.o.weight"] = writes
    maps |= {f"layers.0.mlp.{name}.weight": reads for name in ("gate", "up")}
    maps |= {"layers.0.mlp.down.weight": writes, "layers.1.mlp.down": writes}
    maps |= {"layers.1.mlp.gate_up": reads, "layers.1.mlp.router.weight": reads}
    # Stored [in, out].
    maps |= {"layers.2.mlp.gate_up": writes, "layers.2.mlp.down": reads}
    maps |= {"layers.2.mlp.router.weight": reads}
    return Symmetry(maps)


def together(*symmetries):
    """One after the other, in the model without RoPE, which has all of them."""

    def both(first, second):
        return lambda x: second(first(x))

    whole = Symmetry(with_rope=False)
    for symmetry in symmetries:
        for name, change in symmetry.weights.items():
            whole.weights[name] = both(whole.weights.get(name, identity), change)
        whole.tokens = both(whole.tokens, symmetry.tokens)
    return whole


# Each makes a symmetry from a random generator.
PERMUTATIONS = {
    "vocabulary permuted": permuted_vocabulary,
    "neurons permuted": permuted_neurons,
    "experts permuted": permuted_experts,
    "heads permuted": permuted_heads,
}
ROTATIONS = {
    "heads rotated": partial(rotated_heads, with_rope=False),
    "heads rotated under RoPE": partial(rotated_heads, with_rope=True),
    "hidden basis rotated": rotated_basis,
}
TOGETHER = {
    "all permuted": lambda g: together(*(make(g) for make in PERMUTATIONS.values())),
    "all rotated": lambda g: together(rotated_heads(g, with_rope=False), rotated_basis(g)),
}
