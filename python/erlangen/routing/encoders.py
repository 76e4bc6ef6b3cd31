"""Families with an encoder, as families.py describes the others: T5, BERT, ViT and SigLIP."""

from .slots import (
    Block,
    Slot,
    attention,
    dense,
    gated_mlp,
    kv_slot,
    labels,
    o_slot,
    q_slot,
    square,
    two_layer_mlp,
    vocabulary,
)

# Learned numbers that are added to the attention logits, one for each distance and head. What is
# looked up is no vector, so that nothing can be rotated.
_T5_DISTANCES = Slot(
    "relative_attention_bias",
    "other",
    lambda c: (c.relative_attention_num_buckets, c.num_attention_heads),
)

_BERT_ATTENTION = attention("query", "key", "value")

_SIGLIP_ATTENTION = Block(
    linears=(kv_slot("k_proj"), kv_slot("v_proj"), q_slot("q_proj"), o_slot("out_proj"))
)

# The probe is one vector, the query of the pooling.
_SIGLIP_POOLING = Block(parameters=(Slot("probe", "other", lambda c: (1, 1, c.hidden_size)),))


def _pair(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _vit_positions(config) -> int:
    patches = zip(_pair(config.image_size), _pair(config.patch_size), strict=True)
    height, width = (image // patch for image, patch in patches)
    return height * width + 1


def _vit_vector(name: str) -> Slot:
    return Slot(name, "other", lambda c: (1, 1, c.hidden_size))


_VIT_POSITIONS = Slot(
    "position_embeddings", "embedding", lambda c: (1, _vit_positions(c), c.hidden_size)
)

ENCODERS: dict[str, dict[str, tuple[Block, ...]]] = {
    "t5": {
        "T5Attention": (attention("q", "k", "v", "o", tables=(_T5_DISTANCES,)),),
        "T5DenseActDense": (two_layer_mlp("wi", "wo", lambda c: c.d_ff),),
        "T5DenseGatedActDense": (gated_mlp("wi_0", "wi_1", "wo", lambda c: c.d_ff),),
        "T5ClassificationHead": (
            Block(linears=dense("dense", square).linears + labels("out_proj").linears),
        ),
        "T5ForTokenClassification": (labels("classifier"),),
        "T5ForQuestionAnswering": (labels("qa_outputs"),),
    },
    "bert": {
        "BertSelfAttention": (_BERT_ATTENTION,),
        "BertCrossAttention": (_BERT_ATTENTION,),
        "BertSelfOutput": (Block(linears=(o_slot("dense"),)),),
        "BertIntermediate": (
            Block(
                linears=(Slot("dense", "mlp_in", lambda c: (c.intermediate_size, c.hidden_size)),)
            ),
        ),
        "BertOutput": (
            Block(
                linears=(Slot("dense", "mlp_out", lambda c: (c.hidden_size, c.intermediate_size)),)
            ),
        ),
        "BertPooler": (dense("dense", square),),
        "BertPredictionHeadTransform": (dense("dense", square),),
        "BertLMPredictionHead": (vocabulary("decoder"),),
        "BertOnlyNSPHead": (dense("seq_relationship", lambda c: (2, c.hidden_size)),),
        "BertPreTrainingHeads": (dense("seq_relationship", lambda c: (2, c.hidden_size)),),
        "BertForSequenceClassification": (labels("classifier"),),
        "BertForTokenClassification": (labels("classifier"),),
        "BertForMultipleChoice": (dense("classifier", lambda c: (1, c.hidden_size)),),
        "BertForQuestionAnswering": (labels("qa_outputs"),),
    },
    "vit": {
        # With a token for masked patches or without.
        "ViTEmbeddings": (
            Block(parameters=(_vit_vector("cls_token"), _VIT_POSITIONS)),
            Block(parameters=(_vit_vector("cls_token"), _vit_vector("mask_token"), _VIT_POSITIONS)),
        ),
        "ViTAttention": (attention("q_proj", "k_proj", "v_proj", "o_proj"),),
        "ViTMLP": (two_layer_mlp("fc1", "fc2"),),
        "ViTPooler": (dense("dense", lambda c: (c.pooler_output_size, c.hidden_size)),),
        "ViTForImageClassification": (labels("classifier"),),
    },
    "siglip": {  # the vision tower of Gemma 3
        "SiglipAttention": (_SIGLIP_ATTENTION,),
        "SiglipMLP": (two_layer_mlp("fc1", "fc2"),),
        "SiglipMultiheadAttentionPoolingHead": (_SIGLIP_POOLING,),
    },
}
