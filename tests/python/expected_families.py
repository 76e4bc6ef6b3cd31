"""What routing must find in further families, written by hand from their modelling code.

As expected_roles.py, but only matrices and what else has two or more dimensions are listed: all
tensors of one dimension are biases, norms, gains and decays, and must be "other".
"""

import expected_roles
import torch
import transformers
from expected_roles import EMBEDDING, GATED_MLP, HEAD, SIZES, T, attention, columns, rows

FLAT = {"flatten": True}
IDS = dict(bos_token_id=1, eos_token_id=1, pad_token_id=0)


def sections(*sizes):
    return [{"sections": list(sizes), "dim": -2}]


def prefixed(prefix, table):
    return {prefix + name: expected for name, expected in table.items()}


def gated(prefix):
    names = {"gate_proj.weight": ("mlp_in",), "up_proj.weight": ("mlp_in",)}
    return prefixed(prefix, names | {"down_proj.weight": ("mlp_out",)})


def mixture(prefix, router):
    """All gates and then all ups of an expert."""
    names = {
        "experts.gate_up_proj": ("expert_in", rows(2)),
        "experts.down_proj": ("expert_out",),
        f"{router}.weight": ("router",),
    }
    return prefixed(prefix, names)


# Sizes: d 16, four heads, two for keys and values (four in the square case)


def llama(s):
    return EMBEDDING | attention(4, s["num_key_value_heads"]) | GATED_MLP | HEAD


def sparse(s, moe):
    return EMBEDDING | attention(4, s["num_key_value_heads"]) | moe | HEAD


def mixtral(s):
    return sparse(s, mixture("model.layers.*.mlp.", "gate"))


def granitemoe(s):
    return sparse(s, mixture("model.layers.*.block_sparse_moe.", "router"))


def qwen2_moe(s):
    """The first layer is dense."""
    moe = gated("model.layers.0.mlp.") | mixture("model.layers.1.mlp.", "gate")
    moe |= gated("model.layers.1.mlp.shared_expert.")
    return sparse(s, moe | {"model.layers.1.mlp.shared_expert_gate.weight": ("dense",)})


def qwen3_moe(s):
    return sparse(s, gated("model.layers.0.mlp.") | mixture("model.layers.1.mlp.", "gate"))


def mla_sizes(s):
    is_square = s["hidden_size"] == s["vocab_size"]
    names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return dict(zip(names, (16, 14, 2, 2, 2) if is_square else (6, 10, 6, 4, 8), strict=True))


def deepseek_v3(s, latent_queries=True):
    size = mla_sizes(s)
    latent, rope = size["kv_lora_rank"], size["qk_rope_head_dim"]
    nope, value = size["qk_nope_head_dim"], size["v_head_dim"]
    queries = ("attention", rows(4) + sections(nope, rope))
    block = {
        "kv_a_proj_with_mqa.weight": ("attention", sections(latent, rope)),
        "kv_b_proj.weight": ("attention", rows(4) + sections(nope, value)),
        "o_proj.weight": ("attention", columns(4)),
    }
    if latent_queries:
        block |= {"q_a_proj.weight": ("attention",), "q_b_proj.weight": queries}
    else:
        block |= {"q_proj.weight": queries}
    moe = gated("model.layers.0.mlp.") | mixture("model.layers.1.mlp.", "gate")
    moe |= gated("model.layers.1.mlp.shared_experts.")
    return EMBEDDING | prefixed("model.layers.*.self_attn.", block) | moe | HEAD


def deepseek_v3_full_queries(s):
    return deepseek_v3(s, latent_queries=False)


def phi3(s):
    """Rows: the heads of all queries, then of the keys, then of the values; all gates, all ups."""
    layer = {
        "self_attn.qkv_proj.weight": ("attention", rows(4 + 2 * s["num_key_value_heads"])),
        "self_attn.o_proj.weight": ("attention", columns(4)),
        "mlp.gate_up_proj.weight": ("mlp_in", rows(2)),
        "mlp.down_proj.weight": ("mlp_out",),
    }
    return EMBEDDING | prefixed("model.layers.*.", layer) | HEAD


def gpt2(s):
    """Conv1D: everything in a layer is stored [in, out]."""
    layer = {
        "attn.c_attn.weight": ("attention", [T, *rows(12)]),
        "attn.c_proj.weight": ("attention", [T, *columns(4)]),
        "mlp.c_fc.weight": ("mlp_in", [T]),
        "mlp.c_proj.weight": ("mlp_out", [T]),
    }
    tables = {"transformer.wte.weight": ("embedding",), "transformer.wpe.weight": ("embedding",)}
    return tables | prefixed("transformer.h.*.", layer) | HEAD


def gpt2_cross(s):
    """A second attention of which c_attn has keys and values only."""
    layer = {
        "c_attn.weight": ("attention", [T, *rows(8)]),
        "q_attn.weight": ("attention", [T, *rows(4)]),
        "c_proj.weight": ("attention", [T, *columns(4)]),
    }
    return gpt2(s) | prefixed("transformer.h.*.crossattention.", layer)


def interleaved(prefix, embedding, attention_name, fused):
    layer = {
        f"{attention_name}.query_key_value.weight": ("attention", rows(fused)),
        f"{attention_name}.dense.weight": ("attention", columns(4)),
        "mlp.dense_h_to_4h.weight": ("mlp_in",),
        "mlp.dense_4h_to_h.weight": ("mlp_out",),
    }
    return {embedding: ("embedding",)} | prefixed(prefix, layer) | HEAD


def gpt_neox(s):
    """Rows: query, key and value of the first head, then of the second, ..."""
    return interleaved("gpt_neox.layers.*.", "gpt_neox.embed_in.weight", "attention", 12)


def falcon(heads):
    """Four queries with one key and value; the like for each head; two groups of two queries."""
    embedding = "transformer.word_embeddings.weight"
    return lambda s: interleaved("transformer.h.*.", embedding, "self_attention", heads)


def mamba(s):
    mixer = {
        "A_log": ("other",),
        "conv1d.weight": ("other",),  # depthwise
        "in_proj.weight": ("dense", rows(2)),
        "x_proj.weight": ("dense", sections(3, 5, 5)),
        "dt_proj.weight": ("dense",),
        "out_proj.weight": ("dense",),
    }
    table = {"backbone.embeddings.weight": ("embedding",)}
    return table | prefixed("backbone.layers.*.mixer.", mixer) | HEAD


def t5(s, first=("wi",)):
    heads = {f"{name}.weight": ("attention", rows(4)) for name in "qkv"}
    heads |= {"o.weight": ("attention", columns(4))}
    mlp = {f"{name}.weight": ("mlp_in",) for name in first} | {"wo.weight": ("mlp_out",)}
    table = {"shared.weight": ("embedding",)} | HEAD
    halves = {"encoder": ["SelfAttention"], "decoder": ["SelfAttention", "EncDecAttention"]}
    for half, names in halves.items():
        for i, name in enumerate(names):
            table |= prefixed(f"{half}.block.*.layer.{i}.{name}.", heads)
        table |= prefixed(f"{half}.block.*.layer.{len(names)}.DenseReluDense.", mlp)
        bias = f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table |= {bias: ("other",)}
    return table


def t5_gated(s):
    return t5(s, first=("wi_0", "wi_1"))


def bert(s, attentions=("attention",)):
    table = {
        f"bert.embeddings.{name}_embeddings.weight": ("embedding",)
        for name in ("word", "position", "token_type")
    }
    for name in attentions:
        parts = ("query", "key", "value")
        heads = {f"self.{part}.weight": ("attention", rows(4)) for part in parts}
        heads |= {"output.dense.weight": ("attention", columns(4))}
        table |= prefixed(f"bert.encoder.layer.*.{name}.", heads)
    mlp = {"intermediate.dense.weight": ("mlp_in",), "output.dense.weight": ("mlp_out",)}
    table |= prefixed("bert.encoder.layer.*.", mlp)
    heads = {"transform.dense.weight": ("dense",), "decoder.weight": ("lm_head",)}
    return table | prefixed("cls.predictions.", heads)


def bert_pretraining(s):
    more = {"bert.pooler.dense.weight": ("dense",), "cls.seq_relationship.weight": ("dense",)}
    return bert(s) | more


def bert_decoder(s):
    return bert(s, attentions=("attention", "crossattention"))


def vit(s, base="vit."):
    layer = {f"attention.{name}_proj.weight": ("attention", rows(4)) for name in "qkv"}
    layer |= {
        "attention.o_proj.weight": ("attention", columns(4)),
        "mlp.fc1.weight": ("mlp_in",),
        "mlp.fc2.weight": ("mlp_out",),
    }
    embeddings = {
        "cls_token": ("other",),
        "position_embeddings": ("embedding",),
        "patch_embeddings.projection.weight": ("dense", [FLAT]),
    }
    table = prefixed("embeddings.", embeddings) | prefixed("layers.*.", layer)
    return prefixed(base, table)


def vit_classifier(s):
    return vit(s) | {"classifier.weight": ("dense",)}


def vit_masked(s):
    """With a token for masked patches, and a pooler."""
    return vit(s, "") | {"embeddings.mask_token": ("other",), "pooler.dense.weight": ("dense",)}


# How they are built: kwargs of the config, by size


def _none(s):
    return {}


def _heads(s):
    return {"head_dim": 4 if s["vocab_size"] == 16 else 8}


def _experts(s):
    return {"num_local_experts": 16 if s["vocab_size"] == 16 else 6}


def _narrow_experts(s):
    """The first layer is dense."""
    is_square = s["vocab_size"] == 16
    return {
        "num_experts": 16 if is_square else 6,
        "moe_intermediate_size": 8 if is_square else 10,
        "shared_expert_intermediate_size": 16 if is_square else 12,
        "mlp_only_layers": [0],
        "num_experts_per_tok": 2,
    }


def _deepseek(s):
    size = dict(n_routed_experts=6, moe_intermediate_size=10, n_shared_experts=2)
    size |= dict(n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1)
    size |= dict(num_key_value_heads=4)
    return size | mla_sizes(s)


def _deepseek_full_queries(s):
    return _deepseek(s) | {"q_lora_rank": None}


def _gpt2(s):
    positions = 16 if s["vocab_size"] == 16 else 12
    return {"n_positions": positions, "n_inner": s["intermediate_size"]}


def _mamba(s):
    return {"state_size": 5, "time_step_rank": 3, "expand": 1 if s["vocab_size"] == 16 else 2}


def _t5(s):
    renamed = {"num_layers": 2, "d_ff": s["intermediate_size"]}
    return renamed | {"d_kv": _heads(s)["head_dim"], "relative_attention_num_buckets": 12}


def _bert(s):
    return {"max_position_embeddings": 16 if s["vocab_size"] == 16 else 12}


_VIT = dict(image_size=(8, 12), patch_size=4, num_labels=3, pooler_output_size=20)

# Name: table, model class, further kwargs of its config by size, further kwargs of its config.
FAMILIES = {
    "llama": (llama, "LlamaForCausalLM", _heads, {}),
    "mistral": (llama, "MistralForCausalLM", _heads, {}),
    "qwen2": (llama, "Qwen2ForCausalLM", _heads, {}),
    "mixtral": (mixtral, "MixtralForCausalLM", _experts, {}),
    "qwen2_moe": (qwen2_moe, "Qwen2MoeForCausalLM", _narrow_experts, {}),
    "qwen3_moe": (qwen3_moe, "Qwen3MoeForCausalLM", _narrow_experts, {}),
    "deepseek_v2": (deepseek_v3, "DeepseekV2ForCausalLM", _deepseek, {}),
    "deepseek_v3": (deepseek_v3, "DeepseekV3ForCausalLM", _deepseek, {}),
    "deepseek_v3 with full queries": (
        deepseek_v3_full_queries,
        "DeepseekV3ForCausalLM",
        _deepseek_full_queries,
        {},
    ),
    "phi3": (phi3, "Phi3ForCausalLM", _none, {}),
    "gpt2": (gpt2, "GPT2LMHeadModel", _gpt2, {}),
    "gpt2 with cross attention": (
        gpt2_cross,
        "GPT2LMHeadModel",
        _gpt2,
        {"add_cross_attention": True},
    ),
    "gpt_neox": (gpt_neox, "GPTNeoXForCausalLM", _none, {}),
    "falcon": (falcon(6), "FalconForCausalLM", _none, {}),
    "falcon with keys per head": (falcon(12), "FalconForCausalLM", _none, {"multi_query": False}),
    "falcon in groups": (
        falcon(8),
        "FalconForCausalLM",
        _none,
        {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "granitemoe": (granitemoe, "GraniteMoeForCausalLM", _experts, {}),
    "mamba": (mamba, "MambaForCausalLM", _mamba, {}),
    "t5": (t5, "T5ForConditionalGeneration", _t5, {}),
    "t5 with gates": (
        t5_gated,
        "T5ForConditionalGeneration",
        _t5,
        {"feed_forward_proj": "gated-gelu"},
    ),
    "bert": (bert, "BertForMaskedLM", _bert, {}),
    "bert in pretraining": (bert_pretraining, "BertForPreTraining", _bert, {}),
    "bert as decoder": (
        bert_decoder,
        "BertLMHeadModel",
        _bert,
        {"is_decoder": True, "add_cross_attention": True},
    ),
    "vit": (vit_classifier, "ViTForImageClassification", _none, _VIT),
    "vit with masks": (vit_masked, "ViTModel", _none, _VIT),
}
TABLES = [*expected_roles.TABLES, *FAMILIES]
ALWAYS_TIED = ("t5", "t5 with gates")  # whatever the config says
WITHOUT_HEAD = ("vit", "vit with masks")
CASES = [(family, False) for family in TABLES if family not in ALWAYS_TIED]
CASES += [(family, True) for family in TABLES if family not in WITHOUT_HEAD]
WITH_KV_HEADS = ("llama", "mistral", "qwen2", "mixtral", "qwen2_moe", "qwen3_moe", "granitemoe")
WITH_KV_HEADS += ("deepseek_v2", "deepseek_v3", "phi3")


def build(family, sizes="distinct", tied=False, **more):
    """A small model of any family."""
    if family not in FAMILIES:
        return expected_roles.build(family, sizes, tied, **more)
    _, name, by_size, config = FAMILIES[family]
    kind = getattr(transformers, name)
    size = SIZES[sizes]
    config = size | by_size(size) | config | {"tie_word_embeddings": tied} | more
    if "ViT" in name:
        del config["tie_word_embeddings"], config["vocab_size"]
    else:
        config |= IDS
    if kind.config_class.model_type not in WITH_KV_HEADS:
        del config["num_key_value_heads"]
    torch.manual_seed(0)
    options = {"use_mask_token": True} if name == "ViTModel" else {}
    return kind(kind.config_class(**config), **options)


def expected(family, sizes="distinct", tied=False):
    """The family's table with the layers spelt out, and the tensors of one dimension."""
    if family not in FAMILIES:
        return expected_roles.expected(family, sizes, tied)
    with torch.device("meta"):
        model = build(family, sizes, tied)
    full = {name: ("other", None) for name, p in model.named_parameters() if p.ndim < 2}
    for name, (role, *layout) in FAMILIES[family][0](SIZES[sizes]).items():
        if role == "lm_head" and tied:
            continue
        for layer in range(2 if "*" in name else 1):
            full[name.replace("*", str(layer))] = (role, layout[0] if layout else None)
    return full
