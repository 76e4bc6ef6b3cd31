#include "routing/conventions.h"

#include <iterator>
#include <sstream>
#include <utility>

namespace erlangen {

namespace {

std::vector<SizedStep> rows(const char* count) { return {{{count}, -2}}; }
std::vector<SizedStep> columns(const char* count) { return {{{count}, -1}}; }
SizedStep sections(std::vector<Expression> sizes) { return {std::move(sizes), -2, true}; }

std::vector<std::string> lines(const char* text) {
  std::vector<std::string> result;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const size_t begin = line.find_first_not_of(' ');
    if (begin != std::string::npos) result.push_back(line.substr(begin));
  }
  return result;
}

constexpr bool is_output = true, must_close = true;

// --- attention ----------------------------------------------------------------------------------

const char* const attention = "attention";

void add_attention(std::vector<Convention>& all) {
  const Part q = {attention, {"heads * head_dim", "_d"}, rows("heads")};
  const Part k = {attention, {"kv_heads * head_dim", "_e"}, rows("kv_heads")};
  const Part v = {attention, {"kv_heads * v_head_dim", "_e2"}, rows("kv_heads")};
  const Part o = {attention, {"_out", "heads * v_head_dim"}, columns("heads"), is_output};
  // A query and a gate of its size for each head, one after the other.
  const Part gated_q = {attention, {"2 * heads * head_dim", "_d"}, rows("2 * heads")};
  const Part same_v = {attention, {"kv_heads * head_dim", "_e2"}, rows("kv_heads")};
  const Part same_o = {attention, {"_out", "heads * head_dim"}, columns("heads"), is_output};
  // Whole heads in any order: all queries first, or each group's queries, key and value together.
  const Part qkv = {
      attention, {"(heads + 2 * kv_heads) * head_dim", "_d"}, rows("heads + 2 * kv_heads")};
  const Part mha_qkv = {attention, {"3 * heads * head_dim", "_d"}, rows("3 * heads")};
  const Part kv = {attention, {"2 * kv_heads * head_dim", "_e"}, rows("2 * kv_heads")};

  // Latent attention. A query has a part that meets the head's own key and a rotary part that meets
  // the one key of all heads; either can be rotated alone, so they are two matrices, as are the key
  // and the value that come from one latent.
  const Part latent_q = {
      attention, {"heads * (nope + rope)", "_q"}, {{{"heads"}, -2}, sections({"nope", "rope"})}};
  const Part latent_kv_a = {attention, {"kv_rank + rope", "_d"}, {sections({"kv_rank", "rope"})}};
  const Part latent_kv_b = {attention,
                            {"heads * (nope + v_head_dim)", "kv_rank"},
                            {{{"heads"}, -2}, sections({"nope", "v_head_dim"})}};
  all.push_back({"latent attention", {latent_q, latent_kv_a, latent_kv_b, o}, lines(R"(
    q_proj kv_a_proj_with_mqa kv_b_proj o_proj
    q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj
    q_proj kv_a_proj_with_mqa kv_b_proj dense
    q_b_proj kv_a_proj_with_mqa kv_b_proj dense
    wq wkv_a wkv_b wo
    wq_b wkv_a wkv_b wo
    linear_q_proj linear_kv_down_proj linear_kv_up_proj linear_proj
    linear_q_up_proj linear_kv_down_proj linear_kv_up_proj linear_proj
    )")});
  all.push_back({"latent queries", {{attention, {"_r", "_d"}}, {attention, {"_x", "_r"}}}, lines(R"(
    q_a_proj q_b_proj
    wq_a wq_b
    linear_q_down_proj linear_q_up_proj
    )")});
  all.push_back({"attention",
                 {q, k, same_v, same_o},
                 lines(R"(
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
    q_head k_head v_head post_proj
    q_proj k_proj v_proj projection_layer
    q_proj k_proj v_proj Wo
    Wq Wk Wv dense
    project_q project_k project_v attention_out
    query_global key_global value_global -
    longformer_self_attn.query longformer_self_attn.key longformer_self_attn.value output
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
    )"),
                 {{q, k, v, o}, {gated_q, k, same_v, same_o}}});
  all.push_back({"fused attention",
                 {qkv, same_o},
                 lines(R"(
    qkv_proj o_proj
    qkv_proj out_proj
    qkv_proj output_proj
    qkv_proj proj
    qkv_proj dense
    qkv proj
    qkv out_proj
    qkv o_proj
    qkv projection_layer
    qkv project.0
    qkv projection
    attention.qkv output.dense
    self.in_proj output.dense
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
    qkv_linear wo
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
    )"),
                 {{mha_qkv, same_o}}});
  // Without the map that follows nothing but the width tells how many heads keys and values have.
  const std::vector<std::string> lone_names = {"qkv", "qkv_proj", "query_key_value"};
  const Part square_qkv = {
      attention, {"3 * heads * head_dim", "heads * head_dim"}, rows("3 * heads")};
  all.push_back({"fused attention", {qkv}, lone_names, {}, must_close});
  all.push_back({"fused attention", {square_qkv}, lone_names});
  all.push_back({"attention with keys and values in one", {q, kv, same_o}, lines(R"(
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
    q_linear kv_linear proj
    )")});
  // On what the heads give, before it is mixed.
  all.push_back({"attention's gate", {q, same_o}, lines(R"(
    gate_proj o_proj
    g_proj o_proj
    o_gate wo
    to_gate to_out.0
    output_gate out_proj
    )")});
  all.push_back({"attention with positions of its own", {q, q, mha_qkv, same_o}, lines(R"(
    self.pos_proj self.pos_q_proj self.in_proj output.dense
    pos_key_proj pos_query_proj - -
    )")});
}

// --- multilayer perceptrons ---------------------------------------------------------------------

const Part& mlp_in() {
  static const Part part = {"mlp_in", {"_f", "_d"}};
  return part;
}

const Part& mlp_gate_up() {
  static const Part part = {"mlp_in", {"2 * _f", "_d"}, rows("2")};
  return part;
}

// Back to the width that it came from.
const Part& mlp_out() {
  static const Part part = {"mlp_out", {"_d", "_f"}, {}, is_output};
  return part;
}

void add_mlps(std::vector<Convention>& all) {
  all.push_back({"gated MLP", {mlp_in(), mlp_in(), mlp_out()}, lines(R"(
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
    linear_1 linear_3 linear_2
    w_in.w_0 w_in.w_1 w_out
    )")});
  all.push_back({"gated MLP with gate and up in one", {mlp_gate_up(), mlp_out()}, lines(R"(
    gate_up_proj down_proj
    input_linear output_linear
    Wi Wo
    wi wo
    fc1 fc2
    fc1.proj fc2
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
    )")});
  const std::vector<std::string> two_maps = lines(R"(
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
    )");
  all.push_back({"MLP", {mlp_in(), mlp_out()}, two_maps});
  // To another width: no block between equal features, as in embeddings of time or a projector.
  all.push_back(
      {kChain, {{"dense", {"_h", "_d"}}, {"dense", {"_e", "_h"}, {}, is_output}}, two_maps});
}

// --- state-space models and linear attention -----------------------------------------------------
// Parts that the code cuts from one product are matrices of their own. Mamba's maps act on single
// channels and states on at least one side.

const char* const dense = "dense";

void add_recurrences(std::vector<Convention>& all) {
  all.push_back(
      {"Mamba",
       {{dense, {"2 * inner", "_d"}, rows("2")},  // the channels and their gates
        {dense, {"dt_rank + 2 * state", "inner"}, {sections({"dt_rank", "state", "state"})}},
        {dense, {"inner", "dt_rank"}},
        {dense, {"_d", "inner"}}},
       lines(R"(
    in_proj x_proj dt_proj out_proj
    in_proj - - out_proj
    )"),
       {},
       must_close});
  all.push_back({"Mamba 2",
                 {{dense,
                   {"2 * inner + 2 * groups * state + heads", "_d"},
                   {sections({"inner", "inner", "groups * state", "groups * state", "heads"})}},
                  {dense, {"_d", "inner"}}},
                 lines("in_proj out_proj"),
                 {},
                 must_close});
  all.push_back({"short convolution",
                 {{dense, {"3 * _c", "_d"}, rows("3")}, {dense, {"_d", "_c"}}},
                 lines("in_proj out_proj"),
                 {},
                 !must_close,
                 "conv"});
  all.push_back(
      {"gated convolution", {{dense, {"2 * _c", "_d"}, rows("2")}, {dense, {"_e", "_c"}}}, lines(R"(
    pointwise_conv1 pointwise_conv2
    pointwise_lin1 pointwise_lin2
    )")});

  const Part delta_z = {attention, {"v_heads * v_dim", "_d"}, rows("v_heads")};
  const Part delta_out = {attention, {"_e", "v_heads * v_dim"}, columns("v_heads"), is_output};
  const Part delta_few = {attention, {"v_heads", "_d"}};
  all.push_back(
      {"gated delta rule",
       {{attention, {"(2 * k_heads + v_heads) * k_dim", "_d"}, rows("2 * k_heads + v_heads")},
        delta_z,
        delta_few,
        delta_few,
        delta_out},
       lines("in_proj_qkv in_proj_z in_proj_b in_proj_a out_proj"),
       {},
       must_close});
  // Two numbers for each value head, key head by key head.
  const Part delta_ba = {
      attention,
      {"2 * v_heads", "_d"},
      {{{"k_heads"}, -2}, sections({"v_heads // k_heads", "v_heads // k_heads"})}};
  all.push_back(
      {"gated delta rule",
       {{attention, {"2 * (k_heads + v_heads) * k_dim", "_d"}, rows("2 * (k_heads + v_heads)")},
        delta_ba,
        delta_out},
       lines("in_proj_qkvz in_proj_ba out_proj"),
       {},
       must_close});
  const Part mix = {dense, {"_a", "_d"}}, back = {dense, {"_d", "_a"}, {}, is_output};
  all.push_back({"RWKV", {mix, mix, mix, back}, lines(R"(
    key value receptance output
    k_proj v_proj r_proj o_proj
    )")});
  all.push_back(
      {"RWKV's MLP", {mlp_in(), {dense, {"_d", "_d"}}, mlp_out()}, lines("key receptance value")});
}

// --- maps without a structure of their own -------------------------------------------------------

void add_single_maps(std::vector<Convention>& all) {
  all.push_back({"a transform between blocks", {{dense, {"_d", "_d"}}}, lines(R"(
    pooler.dense
    transform.dense
    pre_classifier
    classifier.dense
    classification_head.dense
    head.dense
    )")});
  all.push_back({"a pooler", {{dense, {"pooled", "_d"}}}, lines("pooler.dense"), {}, must_close});
  all.push_back({"a map onto two labels", {{dense, {"2", "_d"}}}, lines(R"(
    seq_relationship
    qa_outputs
    )")});
  all.push_back({"one gate for each token", {{dense, {"1", "_d"}}}, lines(R"(
    shared_expert_gate
    shared_experts_gate
    )")});
  all.push_back({"a map onto labels",
                 {{dense, {"labels", "_d"}}},
                 lines(R"(
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
    )"),
                 {},
                 must_close});
}

}  // namespace

std::vector<std::string> names_in(const std::string& spelling) {
  std::istringstream in(spelling);
  return {std::istream_iterator<std::string>(in), {}};
}

const std::vector<Convention>& conventions() {
  static const std::vector<Convention> all = [] {
    std::vector<Convention> result;
    add_attention(result);
    add_mlps(result);
    add_recurrences(result);
    add_single_maps(result);
    return result;
  }();
  return all;
}

const std::vector<Convention>& mlps_by_order(size_t maps) {
  static const std::vector<Convention> none,
      two = {{"MLP", {mlp_in(), mlp_out()}, {}}},
      three = {{"gated MLP", {mlp_in(), mlp_in(), mlp_out()}, {}}};
  return maps == 2 ? two : maps == 3 ? three : none;
}

const std::vector<Convention>& expert_stacks() {
  static const std::vector<Convention> all = [] {
    const Part in = {"expert_in", {"_E", "_f", "_d"}};
    const Part gate_up = {"expert_in", {"_E", "2 * _f", "_d"}, rows("2")};
    // _F: LongCat's has experts that pass on what they get, and so fewer maps out than in.
    const Part out = {"expert_out", {"_F", "_d", "_f"}, {}, is_output};
    const char* what = "a stack of experts";
    std::vector<Convention> result = {{what, {gate_up, out}, lines(R"(
    gate_up_proj down_proj
    gate_and_up_projs down_projs
    w13 w2
    input_linear output_linear
    )")},
                                      {what, {in, in, out}, lines(R"(
    gate_proj up_proj down_proj
    w1 w3 w2
    w1 v1 w2
    )")},
                                      {what, {in, out}, lines(R"(
    up_proj down_proj
    w1 w2
    fc1 fc2
    )")}};
    Convention fused = {what, {gate_up, out}, {"mlp1_weight_EGD mlp2_weight_EDF"}};
    Convention gated = {what, {in, in, out}, {"w1_EFD w3_EFD w2_EDF"}};
    for (Convention* convention : {&fused, &gated}) {
      convention->names_order = true;
      result.push_back(*convention);
    }
    return result;
  }();
  return all;
}

}  // namespace erlangen
