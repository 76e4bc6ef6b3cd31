"""Names, as patterns, that count together with shapes: of classes, tensors, tables and heads."""

# Classes
ATTENTION_CLASSES = r"(Attention|Attn)(\d*D|\dd)?$"
MLP_CLASSES = r"MLP|Mlp|FeedForward|Feedforward|FFN|Ffn|FFW"
NORM_CLASSES = r"Norm(\dd)?$"
ROUTER_CLASSES = r"(Router|Gate|Gating|Gater)$"

# Tensors that a module holds itself: names of what is "other" in any number of dimensions
VECTORS = r"(^|_)bias(es)?\d*$|_bias_"
GAINS = r"^(weight_g|g|gamma|beta|gain|gains|scale|scales|ls\d?|layer_scale\w*|lambda\w*|alpha\w*)$"
TABLES_OF_NUMBERS = (
    r"^(A_log|D|dt_bias|sinks|sink|temperature|tau|logit_scale|time_(decay|faaaa|first|maa\w*|mix\w*)"
    r"|relative_position_bias_table|rel_pos_bias|attention_biases|relative_attention_bias)$"
)

# Tables of positions and other learned tokens, held as a tensor
POSITIONS = (
    r"pos(ition(al)?)?_?emb(ed(ding)?s?)?s?$|^pos(itional)?_enc|^position(s|_bias)?$"
    r"|(query|latent|mask|register|prompt|learn\w*|special|object)_?(tokens?|quer(y|ies)|embed\w*)$"
    r"|^(queries|latents|query_feat|query_embed|register_tokens|embeddings?)$"
)
# Maps between towers, held as a tensor [in, out]
PROJECTIONS = r"projection_weight$"
# Heads by name, with the shape of the table of tokens; those of the second kind are recognised only
# where the table's name says what it is, too
HEADS = r"lm_head|embed_out|unembed(ding)?|to_logits|lm_out|logits_proj"
HEADS_BESIDE_TOKENS = r"output|output_layer|head|logits|decoder"
TOKEN_TABLES = (
    r"(tok|token|word)_?emb(ed(ding)?s?)?|embed_tokens|wte|tok_embeddings|emb_tokens|vocab_embed\w*"
)
# Tables of one number for each head: a bias by distance.
DISTANCES = r"rel(ative)?_|bias|distance"

# Experts and their routers
EXPERTS = r"expert"
ROUTERS = (
    r"(gate|router|wg|gating|moe_gate|switch|router_proj|gate_network)"
    r"|(router|gate|gating)\.(layer|linear|classifier|proj|gate|router|wg|weight|dense)"
)
