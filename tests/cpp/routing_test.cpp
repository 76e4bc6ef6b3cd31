// param_groups of torch::nn models: roles by the types of modules, and overrides.

#include <map>

#include "routing/overrides.h"
#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::expect_raises;
namespace nn = torch::nn;

// Options by parameter name.
std::map<std::string, EquivariantOptions> found(const nn::Module& module,
                                                const Overrides& overrides = {}) {
  const testing::CaughtWarnings warnings;
  std::map<std::string, EquivariantOptions> result;
  for (const auto& group : param_groups(module, overrides)) {
    const auto& options = static_cast<const EquivariantOptions&>(group.options());
    EXPECT_EQ(options.param_names().size(), group.params().size());
    EXPECT_EQ(options.evidence().size(), group.params().size());
    EXPECT_EQ(options.why().size(), group.params().size());
    for (size_t i = 0; i < group.params().size(); ++i) {
      EXPECT_TRUE(result.emplace(options.param_names()[i], options).second);
      EXPECT_TRUE(group.params()[i].is_same(module.named_parameters()[options.param_names()[i]]));
    }
  }
  return result;
}

struct Everything : nn::Module {
  Everything() {
    register_module("embedding", nn::Embedding(7, 6));
    register_module("bag", nn::EmbeddingBag(7, 6));
    register_module("linear", nn::Linear(6, 8));
    register_module("bilinear", nn::Bilinear(3, 4, 5));
    register_module("norm", nn::LayerNorm(nn::LayerNormOptions({8})));
    register_module("norm2d", nn::LayerNorm(nn::LayerNormOptions({4, 8})));
    register_module("conv", nn::Conv2d(nn::Conv2dOptions(4, 8, 3)));
    register_module("grouped", nn::Conv1d(nn::Conv1dOptions(4, 8, 3).groups(2)));
    register_module("depthwise", nn::Conv2d(nn::Conv2dOptions(4, 4, 3).groups(4)));
    register_module("transposed", nn::ConvTranspose2d(nn::ConvTranspose2dOptions(4, 8, 3)));
    register_module("attention", nn::MultiheadAttention(nn::MultiheadAttentionOptions(8, 2)));
    register_module("lstm", nn::LSTM(nn::LSTMOptions(4, 6)));
    register_module("gru", nn::GRUCell(nn::GRUCellOptions(4, 6)));
    register_module("rnn", nn::RNN(nn::RNNOptions(4, 6)));
    register_module("encoder", nn::TransformerEncoderLayer(
                                   nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(12)));
    register_module("decoder", nn::TransformerDecoderLayer(
                                   nn::TransformerDecoderLayerOptions(8, 2).dim_feedforward(12)));
  }
};

TEST(Routing, RolesAndLayoutsByType) {
  const std::map<std::string, std::pair<std::string, Layout>> expected = {
      {"embedding.weight", {"embedding", {}}},
      {"bag.weight", {"embedding", {}}},
      {"linear.weight", {"dense", {}}},
      {"linear.bias", {"other", {}}},
      {"bilinear.weight", {"dense", {LayoutStep::flatten()}}},
      {"norm.weight", {"other", {}}},
      {"norm2d.weight", {"other", {}}},
      {"conv.weight", {"dense", {LayoutStep::flatten()}}},
      {"grouped.weight", {"dense", {LayoutStep::flatten(), LayoutStep::heads(2, -2)}}},
      {"depthwise.weight", {"other", {}}},
      {"transposed.weight", {"dense", {LayoutStep::flatten(), LayoutStep::transpose()}}},
      {"attention.in_proj_weight", {"attention", {LayoutStep::heads(6, -2)}}},
      {"attention.in_proj_bias", {"other", {}}},
      {"attention.out_proj.weight", {"attention", {LayoutStep::heads(2, -1)}}},
      {"lstm.weight_ih_l0", {"dense", {LayoutStep::heads(4, -2)}}},
      {"lstm.bias_ih_l0", {"other", {}}},
      {"gru.weight_hh", {"dense", {LayoutStep::heads(3, -2)}}},
      {"rnn.weight_hh_l0", {"dense", {}}},
      {"encoder.self_attn.in_proj_weight", {"attention", {LayoutStep::heads(6, -2)}}},
      {"encoder.self_attn.out_proj.weight", {"attention", {LayoutStep::heads(2, -1)}}},
      {"encoder.linear1.weight", {"mlp_in", {}}},
      {"encoder.linear1.bias", {"other", {}}},
      {"encoder.linear2.weight", {"mlp_out", {}}},
      {"encoder.norm1.weight", {"other", {}}},
      {"decoder.self_attn.in_proj_weight", {"attention", {LayoutStep::heads(6, -2)}}},
      {"decoder.multihead_attn.in_proj_weight", {"attention", {LayoutStep::heads(6, -2)}}},
      {"decoder.multihead_attn.out_proj.weight", {"attention", {LayoutStep::heads(2, -1)}}},
      {"decoder.linear1.weight", {"mlp_in", {}}},
      {"decoder.linear2.weight", {"mlp_out", {}}},
  };
  const auto model = std::make_shared<Everything>();
  const auto options = found(*model);
  EXPECT_EQ(options.size(), model->parameters().size());
  for (const auto& [name, role_and_layout] : expected) {
    ASSERT_TRUE(options.count(name)) << name;
    EXPECT_EQ(options.at(name).role(), role_and_layout.first) << name;
    EXPECT_TRUE(options.at(name).layout() == role_and_layout.second) << name;
  }
}

// As people use it: torch's encoder between a table and a head, which only an override tells apart
// from any other linear layer, since it has other classes than the table has tokens.
struct Classifier : nn::Module {
  nn::Embedding embedding = register_module("embedding", nn::Embedding(11, 8));
  nn::TransformerEncoder encoder = register_module(
      "encoder",
      nn::TransformerEncoder(nn::TransformerEncoderOptions(
          nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(12).dropout(0.0), 2)));
  nn::Linear head = register_module("head", nn::Linear(8, 5));

  torch::Tensor forward(const torch::Tensor& tokens) {
    return head(encoder(embedding(tokens)).mean(0));
  }
};

TEST(Routing, TransformerEncoderOfAUser) {
  torch::manual_seed(0);
  Classifier model;
  const Overrides overrides = {{"head.weight", EquivariantOptions().role("lm_head")}};
  std::map<std::string, std::vector<std::string>> names;  // of the matrices, by role
  for (const auto& [name, options] : found(model, overrides)) {
    if (options.role() != "other") names[options.role()].push_back(name);
  }
  const std::string first = "encoder.layers.0.", second = "encoder.layers.1.";
  const std::map<std::string, std::vector<std::string>> expected = {
      {"embedding", {"embedding.weight"}},
      {"lm_head", {"head.weight"}},
      {"attention",
       {first + "self_attn.in_proj_weight", first + "self_attn.out_proj.weight",
        second + "self_attn.in_proj_weight", second + "self_attn.out_proj.weight"}},
      {"mlp_in", {first + "linear1.weight", second + "linear1.weight"}},
      {"mlp_out", {first + "linear2.weight", second + "linear2.weight"}},
  };
  EXPECT_EQ(names, expected);
  EXPECT_EQ(found(model).at("head.weight").role(), "dense");

  Equivariant optimizer(param_groups(model, overrides), EquivariantOptions(0.02));
  const auto tokens = torch::arange(11).unsqueeze(0).expand({3, 11}),
             classes = torch::arange(11) % 5;
  const auto loss = [&] { return torch::cross_entropy_loss(model.forward(tokens), classes); };
  const double before = loss().item<double>();
  for (int step = 0; step < 20; ++step) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  }
  EXPECT_LT(loss().item<double>(), 0.7 * before);
}

TEST(Routing, EveryGroupSteps) {
  const testing::CaughtWarnings warnings;
  const auto model = std::make_shared<Everything>();
  Equivariant optimizer(param_groups(*model));
  const auto before = testing::copies(model->parameters());
  testing::run(optimizer, 2, 1);
  const auto after = model->parameters();
  for (size_t i = 0; i < after.size(); ++i) EXPECT_FALSE(torch::equal(before[i], after[i])) << i;
}

// Which torch itself takes: parameters() needs no shared_ptr.
TEST(Routing, ModuleOnTheStack) {
  const Everything model;
  EXPECT_EQ(found(model).size(), model.parameters().size());
}

TEST(Routing, OptionsOfRoles) {
  EXPECT_EQ(role_options("embedding").rule(), "row_norm");
  EXPECT_EQ(role_options("embedding").update_scale(), 5.0);
  EXPECT_EQ(role_options("lm_head").rule(), "row_norm");
  EXPECT_TRUE(role_options("lm_head").center());
  EXPECT_EQ(role_options("router").rule(), "left_spectral");
  EXPECT_TRUE(role_options("router").center());
  EXPECT_EQ(role_options("other").rule(), "adamw");
  EXPECT_EQ(role_options("lora").rule(), "adamw");
  for (const char* role : {"attention", "dense", "mlp_in", "mlp_out", "expert_in", "expert_out"}) {
    EXPECT_EQ(role_options(role).rule(), "spectral") << role;
    EXPECT_FALSE(role_options(role).is_set("weight_decay")) << role;
  }
  for (const char* role : {"embedding", "lm_head", "router", "other"}) {
    EXPECT_EQ(role_options(role).weight_decay(), 0.0) << role;
  }
  for (const char* fn : {"original", "spectral_unclamped", "unit_rms_norm"}) {
    EXPECT_EQ(role_options("embedding", fn).rule(), "column_norm");
    EXPECT_TRUE(role_options("embedding", fn).layout() == Layout{LayoutStep::transpose()});
  }
}

TEST(Routing, OverridesByNameGlobAndRole) {
  nn::Sequential model(nn::Linear(4, 4), nn::Linear(4, 4), nn::Linear(4, 4));
  const auto options = found(*model, {{"dense", EquivariantOptions(0.1).momentum(0.1)},
                                      {"1.weight", EquivariantOptions(0.4)},
                                      {"?.weight", EquivariantOptions(0.2).alpha(1.0)},
                                      {"2*", EquivariantOptions(0.3)}});
  EXPECT_EQ(options.at("0.weight").lr(), 0.2);
  EXPECT_EQ(options.at("1.weight").lr(), 0.4);
  EXPECT_EQ(options.at("2.weight").lr(), 0.3);  // of two globs the later one
  EXPECT_EQ(options.at("2.bias").lr(), 0.3);
  for (const char* name : {"0.weight", "1.weight", "2.weight"}) {
    EXPECT_EQ(options.at(name).momentum(), 0.1) << name;
    EXPECT_EQ(options.at(name).alpha(), 1.0) << name;
    EXPECT_EQ(options.at(name).rule(), "spectral") << name;
  }
  EXPECT_FALSE(options.at("0.bias").is_set("momentum"));
}

TEST(Routing, AnOverridesRoleBringsItsOptions) {
  nn::Sequential model(nn::Linear(4, 4), nn::Linear(4, 7));
  const auto options = found(*model, {{"1.weight", EquivariantOptions().role("lm_head")}});
  EXPECT_EQ(options.at("1.weight").rule(), "row_norm");
  EXPECT_TRUE(options.at("1.weight").center());
  EXPECT_EQ(options.at("0.weight").rule(), "spectral");
}

TEST(Routing, BadOverrides) {
  nn::Module nested;
  nested.register_module("head", nn::Linear(3, 3));
  nested.register_module("frozen", nn::Linear(3, 3));
  nested.register_parameter("mixing", torch::randn({3, 3}));  // of no known role
  for (auto& param : nested.named_children()["frozen"]->parameters()) param.requires_grad_(false);
  expect_raises<c10::ValueError>(
      {"match no trainable parameter's name and no role", "\"*.nothing\"\n",
       "\"head\" (did you mean \"head.weight\"?)", "\"frozen.*\" (requires no gradient)",
       "roles of this module: dense, other"},
      [&] {
        param_groups(nested, {{"*.nothing", EquivariantOptions(0.1)},
                              {"head", EquivariantOptions().role("lm_head")},
                              {"head.weight", EquivariantOptions(0.1)},
                              {"frozen.*", EquivariantOptions(0.1)}});
      });
  expect_raises<c10::ValueError>({"override \"weight\"", "head", "lm_head", "embedding"}, [&] {
    param_groups(nested, {{"weight", EquivariantOptions().role("head")}});
  });
  expect_raises<c10::ValueError>({"head", "lm_head"}, [] { role_options("head"); });
  expect_raises<c10::ValueError>({"muon", "original"}, [] { role_options("dense", "muon"); });
}

TEST(Routing, Globs) {
  const std::vector<std::pair<std::string, std::string>> fit = {
      {"*", ""},          {"*", "a.b"},        {"a*c", "abbc"}, {"?.w", "1.w"},
      {"[0-3].w", "2.w"}, {"[!0-3].w", "4.w"}, {"[]x]", "]"},   {"[!]]", "a"},
      {"[a-]", "-"},      {"[", "["},          {"a[b", "a[b"},  {"*[02]*", "layers.2.w"},
      {"**a", "a"},       {"[a-c-e]", "-"},    {"[!]", "[!]"},  {"*.w[12]", "x.y.w2"}};
  const std::vector<std::pair<std::string, std::string>> fit_not = {
      {"", "a"},          {"a", ""},           {"a*c", "abb"},   {"?.w", "10.w"},
      {"[0-3].w", "4.w"}, {"[!0-3].w", "2.w"}, {"[z-a]", "b"},   {"[!]]", "]"},
      {"[ab]", "ab"},     {"[a-c-e]", "d"},    {"*.w[12]", "w1"}};
  for (const auto& [pattern, name] : fit) EXPECT_TRUE(matches_glob(pattern, name)) << pattern;
  for (const auto& [pattern, name] : fit_not) EXPECT_FALSE(matches_glob(pattern, name)) << pattern;
  // Many stars, no match: backtracking over all of them would not end.
  std::string stars;
  for (int i = 0; i < 40; ++i) stars += "*a";
  EXPECT_FALSE(matches_glob(stars + "b", std::string(200, 'a')));
}

TEST(Routing, TheLastLinearOfTheLargestTablesShapeIsTakenForAHead) {
  nn::Module model;
  model.register_module("positions", nn::Embedding(6, 6));
  model.register_module("embedding", nn::Embedding(7, 6));
  model.register_module("first", nn::Linear(6, 7));
  model.register_module("inner", nn::Linear(6, 6));
  model.register_module("head", nn::Linear(6, 7));
  const auto options = found(model);
  EXPECT_EQ(options.at("head.weight").role(), "lm_head");
  EXPECT_FALSE(options.at("head.weight").center());
  EXPECT_EQ(options.at("first.weight").role(), "dense");
  EXPECT_EQ(options.at("inner.weight").role(), "dense");
  const auto chosen = found(model, {{"head.weight", EquivariantOptions().role("dense")}});
  EXPECT_EQ(chosen.at("head.weight").role(), "dense");
  model.register_module("scores", nn::Linear(7, 6));  // another map is the last
  EXPECT_EQ(found(model).at("head.weight").role(), "dense");
  // A square one is as a rule no head, in a model as wide as its context is long.
  nn::Module square;
  square.register_module("positions", nn::Embedding(6, 6));
  square.register_module("last", nn::Linear(6, 6));
  EXPECT_EQ(found(square).at("last.weight").role(), "dense");
}

struct TiedLinearImpl : nn::LinearImpl {
  explicit TiedLinearImpl(const torch::Tensor& shared)
      : LinearImpl(nn::LinearOptions(shared.size(1), shared.size(0)).bias(false)) {
    weight = parameters_["weight"] = shared;
  }
};

TEST(Routing, TiedHeadIsTheEmbeddingWhicheverComesFirst) {
  for (const bool head_first : {false, true}) {
    const nn::Embedding embedding(7, 6);
    const auto head = std::make_shared<TiedLinearImpl>(embedding->weight);
    nn::Module model;
    if (head_first) model.register_module("head", head);
    model.register_module("embedding", embedding);
    if (!head_first) model.register_module("head", head);
    const auto options = found(model);
    ASSERT_EQ(options.size(), 1u);
    EXPECT_EQ(options.begin()->first, head_first ? "head.weight" : "embedding.weight");
    EXPECT_EQ(options.begin()->second.role(), "embedding");
    // Both are its names.
    for (const char* name : {"head.weight", "*ding.weight"}) {
      const auto chosen = found(model, {{name, EquivariantOptions().update_scale(3.0)}});
      EXPECT_EQ(chosen.begin()->second.update_scale(), 3.0) << name;
    }
  }
}

TEST(Routing, DifferentUsesOfOneParameterAreAssumed) {
  const nn::Embedding embedding(7, 6);
  nn::Module model;
  model.register_module("embedding", embedding);
  model.register_parameter("other", embedding->weight);  // of no module that says a role
  const auto options = found(model);
  ASSERT_EQ(options.size(), 1u);
  EXPECT_EQ(options.at("other").role(), "embedding");  // the surer word
  const nn::Linear linear(6, 7);
  nn::Module shared;
  shared.register_module("linear", linear);
  shared.register_parameter("pos_embed", linear->weight);
  EXPECT_EQ(found(shared).at("pos_embed").role(), "embedding");
  const auto chosen = found(model, {{"other", EquivariantOptions().role("dense")}});
  EXPECT_EQ(chosen.at("other").role(), "dense");
  EXPECT_EQ(chosen.at("other").evidence(), EquivariantOptions::Strings{"declared"});
}

TEST(Routing, OverrideOfARoleMayGiveAnother) {
  nn::Module model;
  model.register_module("linear", nn::Linear(6, 8));
  const auto options = found(model, {{"dense", EquivariantOptions().role("lm_head")},
                                     {"lm_head", EquivariantOptions().update_scale(2.0)}});
  const EquivariantOptions& chosen = options.at("linear.weight");
  EXPECT_EQ(chosen.role(), "lm_head");
  EXPECT_EQ(chosen.rule(), "row_norm");
  EXPECT_TRUE(chosen.center());
  EXPECT_EQ(chosen.update_scale(), 2.0);
}

TEST(Routing, AdamwTakesNothingOfTheRoleThatIsMeantForItsRule) {
  nn::Module model;
  model.register_module("embedding", nn::Embedding(7, 6));
  const auto options = found(model, {{"embedding", EquivariantOptions().rule("adamw")}});
  EXPECT_EQ(options.at("embedding.weight").update_scale(), 1.0);
  EXPECT_EQ(options.at("embedding.weight").weight_decay(), 0.0);
}

TEST(Routing, ScaleByShape) {
  nn::Module model;
  model.register_module("embedding", nn::Embedding(7, 6));
  model.register_module("linear", nn::Linear(6, 8));
  std::map<std::string, EquivariantOptions> options;
  const testing::CaughtWarnings warnings;
  for (const auto& group : param_groups(model, {}, "original")) {
    const auto& o = static_cast<const EquivariantOptions&>(group.options());
    for (const auto& name : o.param_names()) options.emplace(name, o);
  }
  EXPECT_EQ(options.at("embedding.weight").rule(), "column_norm");
  EXPECT_EQ(options.at("embedding.weight").layout(), Layout{LayoutStep::transpose()});
  EXPECT_EQ(options.at("linear.weight").adjust_lr_fn(), "original");
  EXPECT_FALSE(options.at("linear.bias").is_set("adjust_lr_fn"));
  // Said of one parameter alone.
  const auto alone =
      found(model, {{"embedding.weight", EquivariantOptions().adjust_lr_fn("unit_rms_norm")}});
  EXPECT_EQ(alone.at("embedding.weight").rule(), "column_norm");
}

TEST(Routing, FrozenParametersAreLeftOut) {
  nn::Linear model(4, 4);
  model->weight.requires_grad_(false);
  const auto options = found(*model);
  EXPECT_EQ(options.size(), 1u);
  EXPECT_TRUE(options.count("bias"));
  model->bias.requires_grad_(false);
  expect_raises<c10::ValueError>({"no parameter that requires a gradient"},
                                 [&] { param_groups(*model); });
}

}  // namespace
}  // namespace erlangen
