"""Models as people write them themselves, and what routing must find in them."""

from types import SimpleNamespace

import torch
from expected_cases import HEAD, TABLE, Case, heads, mlp, odd, weights
from expected_roles import columns, rows
from torch import nn

ROUTER = ("router",)


def linear(d_in, d_out, bias=False):
    return nn.Linear(d_in, d_out, bias=bias)


class Gain(nn.Module):
    """A norm of one's own."""

    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))


# nanoGPT's names: Linear, not GPT-2's Conv1D


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = linear(config.n_embd, config.n_embd)
        self.n_head, self.n_embd = config.n_head, config.n_embd


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = linear(4 * config.n_embd, config.n_embd)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attn, self.mlp = CausalSelfAttention(config), MLP(config)


class GPT(nn.Module):
    def __init__(self, tied):
        super().__init__()
        config = SimpleNamespace(vocab_size=56, block_size=20, n_layer=2, n_head=4, n_embd=24)
        self.config = config
        parts = dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd),
        )
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = linear(config.n_embd, config.vocab_size)
        if tied:
            self.transformer.wte.weight = self.lm_head.weight


def nano_gpt(tied):
    block = "transformer.h.*."
    table = weights(TABLE, "transformer.wte", "transformer.wpe")
    table |= weights(("attention", rows(12)), f"{block}attn.c_attn")
    table |= weights(("attention", columns(4)), f"{block}attn.c_proj")
    return table | mlp(f"{block}mlp.", "c_fc c_proj") | ({} if tied else HEAD)


# llama's names


class Attention(nn.Module):
    def __init__(self, d=24, n_heads=4, n_kv_heads=2, head_dim=8):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.wq = linear(d, n_heads * head_dim)
        self.wk = linear(d, n_kv_heads * head_dim)
        self.wv = linear(d, n_kv_heads * head_dim)
        self.wo = linear(n_heads * head_dim, d)


class FeedForward(nn.Module):
    def __init__(self, d=24, hidden=40):
        super().__init__()
        self.w1, self.w2, self.w3 = linear(d, hidden), linear(hidden, d), linear(d, hidden)


class TransformerBlock(nn.Module):
    def __init__(self, feed_forward):
        super().__init__()
        self.attention, self.attention_norm = Attention(), Gain(24)
        self.feed_forward, self.ffn_norm = feed_forward, Gain(24)


class Transformer(nn.Module):
    def __init__(self, feed_forward=FeedForward):
        super().__init__()
        self.tok_embeddings = nn.Embedding(56, 24)
        self.layers = nn.ModuleList(TransformerBlock(feed_forward()) for _ in range(2))
        self.norm = Gain(24)
        self.output = linear(24, 56)


def llama(second):
    table = weights(TABLE, "tok_embeddings") | weights(("lm_head",), "output")
    return table | heads("layers.*.attention.", 4, 2, "wq wk wv wo") | second


# Experts: a list of MLPs and a gate; stacks and a router


class Mixture(nn.Module):
    def __init__(self, d=24, hidden=14, num_experts=5):
        super().__init__()
        self.num_experts, self.top_k = num_experts, 2
        self.gate = linear(d, num_experts)
        self.experts = nn.ModuleList(FeedForward(d, hidden) for _ in range(num_experts))


class Router(nn.Module):
    def __init__(self, d, num_experts):
        super().__init__()
        self.gate = linear(d, num_experts)


class GroupedExperts(nn.Module):
    def __init__(self, d, hidden, num_experts):
        super().__init__()
        self.num_experts = num_experts
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden, d))
        self.w2 = nn.Parameter(torch.empty(num_experts, d, hidden))
        self.w3 = nn.Parameter(torch.empty(num_experts, hidden, d))


class Stacked(nn.Module):
    def __init__(self, d=24, hidden=14, num_experts=5):
        super().__init__()
        self.router = Router(d, num_experts)
        self.experts = GroupedExperts(d, hidden, num_experts)


def mixture():
    block = "layers.*.feed_forward."
    table = weights(("expert_in",), f"{block}experts.*.w1", f"{block}experts.*.w3")
    return (
        table | weights(("expert_out",), f"{block}experts.*.w2") | weights(ROUTER, f"{block}gate")
    )


def stacked():
    block = "layers.*.feed_forward."
    table = {f"{block}experts.{name}": ("expert_in",) for name in ("w1", "w3")}
    table |= {f"{block}experts.w2": ("expert_out",)}
    return table | weights(ROUTER, f"{block}router.gate")


# A fused projection of which nothing says how many heads it has, and in what order


class Fused(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.qkv, self.proj = linear(d, 3 * d), linear(d, d)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.blocks = nn.ModuleList(Fused() for _ in range(2))
        self.classes = linear(24, 5)


def images():
    table = weights(odd("attention"), "blocks.*.qkv", "blocks.*.proj")
    return table | weights(odd(layout=[{"flatten": True}]), "patches") | weights(odd(), "classes")


LLAMA = mlp("layers.*.feed_forward.", "w1 w3 w2")
CASES = {
    "nanoGPT": Case(lambda: GPT(tied=False), nano_gpt(tied=False), {"lm_head": True}),
    "nanoGPT, tied": Case(lambda: GPT(tied=True), nano_gpt(tied=True)),
    "llama's names": Case(Transformer, llama(LLAMA), {"lm_head": True}),
    "a list of experts": Case(lambda: Transformer(Mixture), llama(mixture())),
    "a stack of experts": Case(lambda: Transformer(Stacked), llama(stacked())),
    "unknown heads": Case(Images, images()),
}
