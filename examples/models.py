"""The four architectures of the paper at a size that a laptop trains, built by transformers.

What differs between them is kept: Qwen3 (grouped-query attention, SwiGLU), Gemma 3 (GeGLU, local
and global attention), OLMoE (experts, softmax before top-k) and gpt-oss (experts with biases and
interleaved gate/up, attention sinks, softmax after top-k).
"""

import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ARCHITECTURES = ("qwen3", "gemma3", "olmoe", "gpt_oss")
MIXTURES = ("olmoe", "gpt_oss")
HEAD_DIM = 32
EXPERTS, EXPERTS_PER_TOKEN = 8, 2


def build_model(
    arch: str,
    vocab_size: int,
    hidden_size: int = 192,
    num_hidden_layers: int = 4,
    seq_len: int = 128,
    tied: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """A randomly initialised model; the same arguments give the same weights."""
    heads = hidden_size // HEAD_DIM
    if hidden_size < 1 or hidden_size % (2 * HEAD_DIM):
        raise SystemExit(f"--hidden-size {hidden_size}: must be a multiple of {2 * HEAD_DIM}")
    shape = dict(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=heads,
        head_dim=HEAD_DIM,
        tie_word_embeddings=tied,
        use_cache=False,
        # the tokenizer's only special token is <|endoftext|>, id 0; nothing is padded
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    experts = dict(num_experts_per_tok=EXPERTS_PER_TOKEN, intermediate_size=hidden_size)
    window = max(1, seq_len // 2)  # so that local attention differs from global attention
    torch.manual_seed(seed)
    if arch == "qwen3":
        config = Qwen3Config(
            **shape, num_key_value_heads=heads // 2, intermediate_size=3 * hidden_size
        )
        return Qwen3ForCausalLM(config)
    if arch == "gemma3":
        config = Gemma3TextConfig(
            **shape,
            num_key_value_heads=1,
            intermediate_size=3 * hidden_size,
            query_pre_attn_scalar=HEAD_DIM,
            sliding_window=window,
            layer_types=["sliding_attention"] * (num_hidden_layers - 1) + ["full_attention"],
        )
        return Gemma3ForCausalLM(config)
    if arch == "olmoe":
        config = OlmoeConfig(**shape, **experts, num_key_value_heads=heads, num_experts=EXPERTS)
        return OlmoeForCausalLM(config)
    if arch == "gpt_oss":
        config = GptOssConfig(
            **shape,
            **experts,
            num_key_value_heads=1,
            num_local_experts=EXPERTS,
            sliding_window=window,
        )
        return GptOssForCausalLM(config)  # eager attention: sdpa knows no attention sinks
    raise SystemExit(f"--arch {arch}: must be one of {', '.join(ARCHITECTURES)}")


def hidden_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """All weight matrices and expert stacks but embedding, LM head and routers.

    These are what Muon is meant for, and what weight decay applies to.
    """
    vocabulary = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
        and parameter not in vocabulary
        and not name.endswith("bias")  # gpt-oss: one bias vector per expert
        and not name.endswith((".mlp.gate.weight", ".mlp.router.weight"))
    }
