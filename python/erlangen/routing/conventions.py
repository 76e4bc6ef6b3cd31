"""Conventions by which people name the parts of a block, as data.

A convention lists the parts of a block, and the spellings under which they are found: names
relative to one module, dots included. It holds where the names are there *and* the shapes obey
its equations, with the sizes that the modules or the config state (numbers.py) and one unknown
for each name that nobody states. A layout whose sizes stay open is left out: the whole matrix.

To add a convention, add an entry; the shapes are those of [out, in] maps, whichever way they are
stored, or of a tensor as it is.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of a block: its role, its shape by equation, its layout by sizes, and whether its
    columns (not its rows) are the block's inner features."""

    role: str
    shape: str
    layout: tuple[tuple, ...] = ()  # steps: ("heads", count, dim), ("sections", sizes)
    is_output: bool = False


@dataclass(frozen=True)
class Convention:
    """`spellings` name the parts in their order; "-" where one stands elsewhere."""

    what: str
    parts: tuple[Part, ...]
    spellings: tuple[str, ...]
    variants: tuple[tuple[Part, ...], ...] = ()  # other equations, tried where those before fail
    beside: str = ""  # the name of a module that must stand beside the parts
    must_close: bool = False  # sizes of the shapes must be stated, not only those of layouts


def _rows(count: str) -> tuple[tuple, ...]:
    return (("heads", count, -2),)


def _columns(count: str) -> tuple[tuple, ...]:
    return (("heads", count, -1),)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


# Attention

_Q = Part("attention", "heads * head_dim, _d", _rows("heads"))
_K = Part("attention", "kv_heads * head_dim, _e", _rows("kv_heads"))
_V = Part("attention", "kv_heads * v_head_dim, _e2", _rows("kv_heads"))
_O = Part("attention", "_out, heads * v_head_dim", _columns("heads"), is_output=True)
# A query and a gate of its size for each head, one after the other.
_GATED_Q = Part("attention", "2 * heads * head_dim, _d", _rows("2 * heads"))
_SAME_V = Part("attention", "kv_heads * head_dim, _e2", _rows("kv_heads"))
_SAME_O = Part("attention", "_out, heads * head_dim", _columns("heads"), is_output=True)
# Whole heads in any order: all queries first, or each group's queries, key and value together.
_QKV = Part("attention", "(heads + 2 * kv_heads) * head_dim, _d", _rows("heads + 2 * kv_heads"))
_MHA_QKV = Part("attention", "3 * heads * head_dim, _d", _rows("3 * heads"))
_KV = Part("attention", "2 * kv_heads * head_dim, _e", _rows("2 * kv_heads"))

_ATTENTION = Convention(
    "attention",
    (_Q, _K, _SAME_V, _SAME_O),
    _lines("""
        q_proj k_proj v_proj o_proj
        q_proj k_proj v_proj out_proj
        q_proj k_proj v_proj dense
        q_proj k_proj v_proj proj
        q_proj k_proj v_proj c_proj
        q_proj k_proj v_proj output_proj
        q_proj k_proj v_proj final_linear
        q_proj k_proj v_proj -
        q_proj k_proj - o_proj
        q_proj - - o_proj
        wq wk wv wo
        Wq Wk Wv Wo
        w_q w_k w_v w_o
        q k v o
        q k v proj
        q k v out
        q k v out_proj
        q k v proj_out
        q k v -
        query key value output
        query key value out
        query key value out_proj
        query key value dense
        query key value proj
        query key value proj_attn
        self.query self.key self.value output.dense
        attention.query attention.key attention.value output.dense
        attention.self.query attention.self.key attention.self.value attention.output.dense
        query key value -
        attn.query attn.key attn.value -
        query_proj key_proj value_proj out_proj
        query_proj key_proj value_proj output_proj
        self.query_proj self.key_proj self.value_proj output.dense
        query_proj key_proj value_proj -
        to_q to_k to_v to_out.0
        to_q to_k to_v to_out
        to_q to_k to_v to_add_out
        to_q to_k to_v -
        add_q_proj add_k_proj add_v_proj to_add_out
        add_q_proj add_k_proj add_v_proj -
        q_lin k_lin v_lin out_lin
        linear_q linear_k linear_v linear_out
        q_attn k_attn v_attn o_attn
        queries keys values out
        query_layer key_layer value_layer output_layer
        wq wk wv out_proj
        wq wk wv proj
        qkv_linear.wq qkv_linear.wk qkv_linear.wv wo
        to_query to_key to_value to_out
        to_query to_key to_value -
    """),
    variants=((_Q, _K, _V, _O), (_GATED_Q, _K, _SAME_V, _SAME_O)),
)
_FUSED_ATTENTION = Convention(
    "fused attention",
    (_QKV, _SAME_O),
    _lines("""
        qkv_proj o_proj
        qkv_proj out_proj
        qkv_proj output_proj
        qkv_proj proj
        qkv_proj dense
        qkv proj
        qkv out_proj
        qkv o_proj
        qkv projection_layer
        qkv dense
        qkv out
        query_key_value dense
        self.query_key_value output.dense
        query_key_value o_proj
        Wqkv out_proj
        Wqkv Wo
        Wqkv o_proj
        attn.Wqkv attn.out_proj
        wqkv wo
        qkv_linear.wqkv wo
        img_attn_qkv img_attn_proj
        txt_attn_qkv txt_attn_proj
        wqkv dense
        c_attn c_proj
        to_qkv to_out
        to_qkv to_out.0
        att_proj attn_out
        linear_qkv linear_proj
        qkv_linear linear
        qkv_linear out_proj
        in_proj_qkv out_proj
        attention.query_key_value attention.dense
    """),
    variants=((_MHA_QKV, _SAME_O),),
)
# Without the map that follows them nothing but the width tells how many heads keys and values have.
_LONE_QKV = Convention(
    "fused attention",
    (_QKV,),
    ("qkv", "qkv_proj", "query_key_value"),
    variants=((Part("attention", "3 * heads * head_dim, heads * head_dim", _rows("3 * heads")),),),
)
_DISENTANGLED = Convention(
    "attention with positions of its own",
    (_Q, _Q, _MHA_QKV, _SAME_O),
    _lines("""
        self.pos_proj self.pos_q_proj self.in_proj output.dense
        pos_key_proj pos_query_proj - -
    """),
)
_FUSED_KV = Convention(
    "attention with keys and values in one",
    (_Q, _KV, _SAME_O),
    _lines("""
        q_proj kv_proj out_proj
        q_proj kv_proj o_proj
        q_proj kv_proj proj
        q_proj kv_proj -
        q kv proj
        q kv -
        to_q to_kv to_out
        to_q to_kv to_out.0
        q_attn c_attn c_proj
        linear_q linear_kv linear_proj
        wq wkv wo
    """),
)

# Latent attention. A query has a part that meets the head's own key and a rotary part that meets
# the one key of all heads; either can be rotated alone, so they are two matrices, as are the key
# and the value that come from one latent.
_LATENT_Q = Part(
    "attention",
    "heads * (nope + rope), _q",
    (("heads", "heads", -2), ("sections", ("nope", "rope"))),
)
_LATENT_KV_A = Part("attention", "kv_rank + rope, _d", (("sections", ("kv_rank", "rope")),))
_LATENT_KV_B = Part(
    "attention",
    "heads * (nope + v_head_dim), kv_rank",
    (("heads", "heads", -2), ("sections", ("nope", "v_head_dim"))),
)
_MLA = Convention(
    "latent attention",
    (_LATENT_Q, _LATENT_KV_A, _LATENT_KV_B, _O),
    _lines("""
        q_proj kv_a_proj_with_mqa kv_b_proj o_proj
        q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj
        q_proj kv_a_proj_with_mqa kv_b_proj dense
        q_b_proj kv_a_proj_with_mqa kv_b_proj dense
        wq wkv_a wkv_b wo
        wq_b wkv_a wkv_b wo
        linear_q_proj linear_kv_down_proj linear_kv_up_proj linear_proj
        linear_q_up_proj linear_kv_down_proj linear_kv_up_proj linear_proj
    """),
)
_MLA_Q_A = Convention(
    "latent queries",
    (Part("attention", "_r, _d"), Part("attention", "_x, _r")),
    _lines("""
        q_a_proj q_b_proj
        wq_a wq_b
        linear_q_down_proj linear_q_up_proj
    """),
)

# Multilayer perceptrons

_IN = Part("mlp_in", "_f, _d")
_GATE_UP = Part("mlp_in", "2 * _f, _d", _rows("2"))
_OUT = Part("mlp_out", "_d, _f", is_output=True)  # back to the width that it came from

_GATED_MLP = Convention(
    "gated MLP",
    (_IN, _IN, _OUT),
    _lines("""
        gate_proj up_proj down_proj
        w1 w3 w2
        wi_0 wi_1 wo
        DenseReluDense.wi_0 DenseReluDense.wi_1 DenseReluDense.wo
        fc1_g fc1_x fc2
        fc_1 fc_2 proj
        c_fc_0 c_fc_1 c_proj
        gate up down
        gate_linear up_linear down_linear
        w_gate w_up w_down
        w1 v1 w2
        ff_proj up_proj ff_out
        linear1 linear3 linear2
        w_in.w_0 w_in.w_1 w_out
    """),
)
_FUSED_MLP = Convention(
    "gated MLP with gate and up in one",
    (_GATE_UP, _OUT),
    _lines("""
        gate_up_proj down_proj
        input_linear output_linear
        Wi Wo
        wi wo
        fc1 fc2
        w12 w3
        w1 w2
        weights_in weights_out
        net.0.proj net.2
        linear_fc1 linear_fc2
        up_gate_proj down_proj
        up_proj down_proj
        up_gate_proj output_proj
        gate_up down
        linear_in linear_out
        c_fc c_proj
        w13 w2
        dense_h_to_4h dense_4h_to_h
        swiglu.0.proj swiglu.2
    """),
)
_TWO_MAPS = _lines("""
        fc1 fc2
        c_fc c_proj
        dense_h_to_4h dense_4h_to_h
        fc_in fc_out
        wi wo
        Wi Wo
        lin1 lin2
        linear1 linear2
        linear_1 linear_2
        linear_in linear_out
        up_proj down_proj
        intermediate.dense output.dense
        intermediate_dense output_dense
        ffn.dense.dense1 ffn.dense2
        w_1 w_2
        intermediate output
        intermediate_query.dense output_query.dense
        point_wise_conv1 point_wise_conv2
        pointwise_conv1 pointwise_conv2
        gate_proj down_proj
        w1 w2
        net.0.proj net.2
        net.0 net.2
        ff1 ff2
        ffn1 ffn2
        ffn.0 ffn.2
        ffn.0 ffn.3
        mlp.0 mlp.2
        mlp.0 mlp.3
        pwconv1 pwconv2
        fc_1 fc_2
        dense1 dense2
        dense_in dense_out
        linear_fc1 linear_fc2
        ffn ffn_output
        ffw_layer_1 ffw_layer_2
""")
_MLP = Convention("MLP", (_IN, _OUT), _TWO_MAPS)
# To another width: no block between equal features, as in embeddings of time or a projector.
_CHAIN = Convention(
    "a chain of maps", (Part("dense", "_h, _d"), Part("dense", "_e, _h", is_output=True)), _TWO_MAPS
)


# State-space models and linear attention: parts that the code cuts from one product are matrices of
# their own. Mamba's maps act on single channels and states on at least one side.


def _dense(shape: str, *layout: tuple, is_output: bool = False) -> Part:
    return Part("dense", shape, layout, is_output)


_MAMBA = Convention(
    "Mamba",
    (
        _dense("2 * inner, _d", ("heads", "2", -2)),  # the channels and their gates
        _dense("dt_rank + 2 * state, inner", ("sections", ("dt_rank", "state", "state"))),
        _dense("inner, dt_rank"),
        _dense("_d, inner"),
    ),
    _lines("""
        in_proj x_proj dt_proj out_proj
        in_proj - - out_proj
    """),
    must_close=True,
)
_MAMBA2 = Convention(
    "Mamba 2",
    (
        _dense(
            "2 * inner + 2 * groups * state + heads, _d",
            ("sections", ("inner", "inner", "groups * state", "groups * state", "heads")),
        ),
        _dense("_d, inner"),
    ),
    ("in_proj out_proj",),
    must_close=True,
)
_SHORT_CONVOLUTION = Convention(
    "short convolution",
    (_dense("3 * _c, _d", ("heads", "3", -2)), _dense("_d, _c")),
    ("in_proj out_proj",),
    beside="conv",
)
_GLU_CONVOLUTION = Convention(
    "gated convolution",
    (_dense("2 * _c, _d", ("heads", "2", -2)), _dense("_e, _c")),
    _lines("""
        pointwise_conv1 pointwise_conv2
        pointwise_lin1 pointwise_lin2
    """),
)
_DELTA_QKV = Part(
    "attention", "(2 * k_heads + v_heads) * k_dim, _d", _rows("2 * k_heads + v_heads")
)
_DELTA_QKVZ = Part(
    "attention", "2 * (k_heads + v_heads) * k_dim, _d", _rows("2 * (k_heads + v_heads)")
)
_DELTA_Z = Part("attention", "v_heads * v_dim, _d", _rows("v_heads"))
_DELTA_OUT = Part("attention", "_e, v_heads * v_dim", _columns("v_heads"), is_output=True)
_DELTA_FEW = Part("attention", "v_heads, _d")
_DELTA_NET = Convention(
    "gated delta rule",
    (_DELTA_QKV, _DELTA_Z, _DELTA_FEW, _DELTA_FEW, _DELTA_OUT),
    ("in_proj_qkv in_proj_z in_proj_b in_proj_a out_proj",),
    must_close=True,
)
_FUSED_DELTA_NET = Convention(
    "gated delta rule",
    (
        _DELTA_QKVZ,
        # Two numbers for each value head, key head by key head.
        Part(
            "attention",
            "2 * v_heads, _d",
            (("heads", "k_heads", -2), ("sections", ("v_heads // k_heads", "v_heads // k_heads"))),
        ),
        _DELTA_OUT,
    ),
    ("in_proj_qkvz in_proj_ba out_proj",),
    must_close=True,
)
_RWKV = Convention(
    "RWKV",
    (_dense("_a, _d"), _dense("_a, _d"), _dense("_a, _d"), _dense("_d, _a", is_output=True)),
    ("key value receptance output", "k_proj v_proj r_proj o_proj"),
)
_RWKV_MLP = Convention(
    "RWKV's MLP",
    (_IN, _dense("_d, _d"), _OUT),
    ("key receptance value",),
)

# Maps without a structure of their own
_SQUARE = Convention(
    "a transform between blocks",
    (_dense("_d, _d"),),
    _lines("""
        pooler.dense
        transform.dense
        pre_classifier
        classifier.dense
        classification_head.dense
        head.dense
    """),
)
_POOLER = Convention("a pooler", (_dense("pooled, _d"),), ("pooler.dense",), must_close=True)
_PAIRS = Convention("a map onto two labels", (_dense("2, _d"),), ("seq_relationship", "qa_outputs"))
_SCALAR_GATE = Convention(
    "one gate for each token", (_dense("1, _d"),), ("shared_expert_gate", "shared_experts_gate")
)
_LABELS = Convention(
    "a map onto labels",
    (_dense("labels, _d"),),
    _lines("""
        classifier
        score
        classifier.out_proj
        classification_head.out_proj
        head
        fc
        head.fc
        heads.head
        classifier.1
        qa_outputs
    """),
    must_close=True,
)

CONVENTIONS: tuple[Convention, ...] = (
    _MLA, _MLA_Q_A, _ATTENTION, _FUSED_ATTENTION, _LONE_QKV, _FUSED_KV, _DISENTANGLED,
    _GATED_MLP, _FUSED_MLP, _MLP, _CHAIN,
    _MAMBA, _MAMBA2, _SHORT_CONVOLUTION, _GLU_CONVOLUTION, _DELTA_NET, _FUSED_DELTA_NET,
    _RWKV, _RWKV_MLP,
    _SQUARE, _POOLER, _PAIRS, _SCALAR_GATE, _LABELS,
)  # fmt: skip

# Experts in stacks
_STACK_IN = Part("expert_in", "_E, _f, _d")
_STACK_GATE_UP = Part("expert_in", "_E, 2 * _f, _d", _rows("2"))
# _F: LongCat's has experts that pass on what they get, and so fewer maps out than in.
_STACK_OUT = Part("expert_out", "_F, _d, _f", is_output=True)
EXPERT_STACKS: tuple[tuple[str, tuple[Part, ...]], ...] = (
    ("gate_up_proj down_proj", (_STACK_GATE_UP, _STACK_OUT)),
    ("gate_and_up_projs down_projs", (_STACK_GATE_UP, _STACK_OUT)),
    ("w13 w2", (_STACK_GATE_UP, _STACK_OUT)),
    ("gate_proj up_proj down_proj", (_STACK_IN, _STACK_IN, _STACK_OUT)),
    ("w1 w3 w2", (_STACK_IN, _STACK_IN, _STACK_OUT)),
    ("w1_EFD w3_EFD w2_EDF", (_STACK_IN, _STACK_IN, _STACK_OUT)),
    ("mlp1_weight_EGD mlp2_weight_EDF", (_STACK_GATE_UP, _STACK_OUT)),
    ("w1 v1 w2", (_STACK_IN, _STACK_IN, _STACK_OUT)),
    ("up_proj down_proj", (_STACK_IN, _STACK_OUT)),
    ("w1 w2", (_STACK_IN, _STACK_OUT)),
    ("input_linear output_linear", (_STACK_GATE_UP, _STACK_OUT)),
    ("fc1 fc2", (_STACK_IN, _STACK_OUT)),
)

# The maps of a class that is called an MLP, whatever their names: by order and shape.
MLP_BY_ORDER: dict[int, tuple[Convention, ...]] = {
    2: (Convention("MLP", (_IN, _OUT), ()), Convention("gated MLP", (_GATE_UP, _OUT), ())),
    3: (Convention("gated MLP", (_IN, _IN, _OUT), ()),),
}
