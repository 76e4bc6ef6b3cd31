"""Encoders, and encoders with a decoder: what routing must find, by hand from their code."""

from expected_cases import (
    BASE,
    CONV,
    FREE,
    IDS,
    OTHER,
    PATCHES,
    TABLE,
    Case,
    from_config,
    heads,
    mlp,
    odd,
    weights,
)
from expected_families import FLAT, gated
from expected_roles import columns, rows
from transformers import CLIPConfig, CLIPModel, T5GemmaConfig, T5GemmaForConditionalGeneration

OUT = "q_proj k_proj v_proj out_proj"


def both(encoder="self_attn", decoder="encoder_attn"):
    """Four heads in the encoder, three in the decoder."""
    table = heads(f"model.encoder.layers.*.{encoder}.", 4, names=OUT)
    table |= mlp("model.encoder.layers.*.", "fc1 fc2") | mlp("model.decoder.layers.*.", "fc1 fc2")
    for name in (encoder, decoder):
        table |= heads(f"model.decoder.layers.*.{name}.", 3, names=OUT)
    return table


def whisper():
    """The encoder's positions are fixed: no parameters that train."""
    table = weights(TABLE, "model.decoder.embed_tokens", "model.decoder.embed_positions")
    return table | both() | weights(CONV, "model.encoder.conv1", "model.encoder.conv2")


def bart():
    tables = ("shared", "encoder.embed_positions", "decoder.embed_positions")
    return both() | weights(TABLE, *(f"model.{name}" for name in tables))


def umt5():
    """A table of biases, one number a head, in every layer."""
    table = weights(TABLE, "shared")
    for half, names in (("encoder", ["Self"]), ("decoder", ["Self", "EncDec"])):
        for i, name in enumerate(names):
            block = f"{half}.block.*.layer.{i}.{name}Attention."
            table |= heads(block, 4, names="q k v o")
        table |= mlp(f"{half}.block.*.layer.{len(names)}.DenseReluDense.", "wi_0 wi_1 wo")
        bias = f"{half}.block.*.layer.0.SelfAttention.relative_attention_bias"
        table |= weights(OTHER, bias)
    return table


def t5gemma():
    table = weights(TABLE, "model.encoder.embed_tokens", "model.decoder.embed_tokens")
    for half in ("encoder", "decoder"):
        table |= heads(f"model.{half}.layers.*.self_attn.", 4, 2)
        table |= gated(f"model.{half}.layers.*.mlp.")
    table |= heads("model.decoder.layers.*.cross_attn.", 4, 2)
    return table | weights(("lm_head",), "lm_head.out_proj")


def modernbert():
    """Rows of Wqkv: all queries, keys, values; of Wi: all inputs, all gates."""
    layer = "model.layers.*."
    table = weights(TABLE, "model.embeddings.tok_embeddings")
    table |= weights(("attention", rows(12)), f"{layer}attn.Wqkv")
    table |= weights(("attention", columns(4)), f"{layer}attn.Wo")
    table |= weights(("mlp_in", rows(2)), f"{layer}mlp.Wi")
    table |= weights(("mlp_out",), f"{layer}mlp.Wo")
    return table | weights(odd(), "head.dense") | weights(("lm_head",), "decoder")


def bert_like(prefix, attention):
    """As BERT's layers, with other names for what reads the input."""
    layer = f"{prefix}.encoder.layer.*."
    tables = ("word", "position", "token_type")
    table = weights(TABLE, *(f"{prefix}.embeddings.{name}_embeddings" for name in tables))
    inputs = (f"{layer}attention.self.{name}" for name in attention)
    table |= weights(("attention", rows(4)), *inputs)
    table |= weights(("attention", columns(4)), f"{layer}attention.output.dense")
    return table | mlp(layer, "intermediate.dense output.dense")


def electra():
    """Tokens and head narrower than the layers."""
    table = bert_like("electra", ["query", "key", "value"])
    table |= weights(odd(), "electra.embeddings_project", "generator_predictions.dense")
    return table | weights(("lm_head",), "generator_lm_head")


def discriminator():
    """Its last map has one output, and is no head."""
    table = bert_like("electra", ["query", "key", "value"])
    own = ("electra.embeddings_project", "discriminator_predictions.dense")
    return table | weights(odd(), *own, "discriminator_predictions.dense_prediction")


def deberta():
    """Rows of in_proj: query, key and value of the first head, then of the second."""
    table = bert_like("deberta", ["pos_proj", "pos_q_proj"])
    layer = "deberta.encoder.layer.*.attention.self.in_proj"
    table |= weights(("attention", rows(12)), layer)
    table |= weights(TABLE, "deberta.encoder.rel_embeddings")
    table |= weights(odd(), "cls.predictions.transform.dense")
    return table | weights(("lm_head",), "cls.predictions.decoder")


def deberta_v2():
    """What it calls its output embeddings is a map before them: the head is the table itself."""
    names = ("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj")
    table = bert_like("deberta", names)
    table |= weights(TABLE, "deberta.encoder.rel_embeddings")
    return table | weights(odd(), "lm_predictions.lm_head.dense")


def wav2vec2():
    """No tokens go in: the map onto letters is a classifier, and a softmax follows it."""
    layer = "wav2vec2.encoder.layers.*."
    position = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight."
    table = weights(CONV, "wav2vec2.feature_extractor.conv_layers.*.conv")
    table |= {f"{position}original0": OTHER, f"{position}original1": odd(layout=[FLAT, *rows(2)])}
    table |= heads(f"{layer}attention.", 4, names=OUT)
    table |= mlp(f"{layer}feed_forward.", "intermediate_dense output_dense")
    table |= weights(odd(), "wav2vec2.feature_projection.projection")
    return table | weights(odd(("dense", "lm_head")), "lm_head")


def clip():
    """Two towers: four heads for the text, three for the image. Two maps into a shared space."""
    table = {}
    for tower, n in (("text_model.", 4), ("vision_model.", 3)):
        layer = f"{tower}encoder.layers.*."
        table |= heads(f"{layer}self_attn.", n, names=OUT) | mlp(f"{layer}mlp.", "fc1 fc2")
        table |= weights(TABLE, f"{tower}embeddings.position_embedding")
    table |= weights(TABLE, "text_model.embeddings.token_embedding")
    table |= weights(PATCHES, "vision_model.embeddings.patch_embedding")
    return table | weights(odd(), "visual_projection", "text_projection")


def build_clip():
    text = dict(vocab_size=56, hidden_size=24, intermediate_size=40, num_hidden_layers=2)
    text |= dict(num_attention_heads=4, max_position_embeddings=16, projection_dim=18, **IDS)
    vision = dict(hidden_size=36, intermediate_size=44, num_hidden_layers=2, projection_dim=18)
    vision |= dict(num_attention_heads=3, image_size=8, patch_size=4)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=18))


def build_t5gemma():
    layers = dict(layer_types=["sliding_attention", "full_attention"])
    config = T5GemmaConfig(
        encoder=FREE | layers,
        decoder=FREE | layers | dict(intermediate_size=44),
        vocab_size=56,
        tie_word_embeddings=False,
    )
    return T5GemmaForConditionalGeneration(config)


HALVES = dict(vocab_size=56, d_model=24, encoder_layers=2, decoder_layers=2, **IDS)
HALVES |= dict(encoder_attention_heads=4, decoder_attention_heads=3)
HALVES |= dict(encoder_ffn_dim=40, decoder_ffn_dim=44, decoder_start_token_id=1)
WHISPER = HALVES | dict(num_mel_bins=10, max_source_positions=14, max_target_positions=16)
BART = HALVES | dict(max_position_embeddings=16)
UMT5 = dict(vocab_size=56, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
UMT5 |= dict(relative_attention_num_buckets=10)
ELECTRA = BASE | dict(embedding_size=12, max_position_embeddings=16)
DEBERTA = BASE | dict(max_position_embeddings=16, type_vocab_size=2, relative_attention=True)
DEBERTA |= dict(pos_att_type=["p2c", "c2p"])
V2 = DEBERTA | dict(position_buckets=10, share_att_key=False, legacy=False)
SOUND = BASE | dict(conv_dim=[12, 14], conv_kernel=[3, 3], conv_stride=[2, 2])
SOUND |= dict(num_feat_extract_layers=2, num_conv_pos_embeddings=6)
SOUND |= dict(num_conv_pos_embedding_groups=2)
CENTERED = {"lm_head": True}

CASES = {
    "whisper": Case(from_config("WhisperForConditionalGeneration", **WHISPER), whisper()),
    "bart": Case(from_config("BartForConditionalGeneration", **BART), bart()),
    "umt5": Case(from_config("UMT5ForConditionalGeneration", **UMT5), umt5()),
    "t5gemma": Case(build_t5gemma, t5gemma(), {"lm_head": False}),  # soft-capped
    "modernbert": Case(from_config("ModernBertForMaskedLM", **BASE), modernbert(), CENTERED),
    "electra": Case(from_config("ElectraForMaskedLM", **ELECTRA), electra(), CENTERED),
    "electra's other half": Case(from_config("ElectraForPreTraining", **ELECTRA), discriminator()),
    "deberta": Case(from_config("DebertaForMaskedLM", **DEBERTA), deberta(), CENTERED),
    "deberta_v2": Case(from_config("DebertaV2ForMaskedLM", **V2), deberta_v2()),
    "wav2vec2": Case(from_config("Wav2Vec2ForCTC", **SOUND), wav2vec2()),
    "clip": Case(build_clip, clip()),
}
