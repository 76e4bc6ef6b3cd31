"""What the tests of integrations share: a small language model, its data, and a plain run of it."""

import torch
from torch.utils.data import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY, LENGTH = 29, 8


def language_model(seed: int = 0, **config) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    return Qwen3ForCausalLM(Qwen3Config(**shape | config))


class Text(Dataset):
    """Windows of a sequence that a model can learn."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        tokens = (torch.arange(LENGTH) + 5 * index) ** 2 % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}
