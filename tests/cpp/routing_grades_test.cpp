// param_groups: grades, the warning, strict, the walk over modules.

#include <algorithm>
#include <map>

#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::CaughtWarnings;
using testing::expect_raises;
namespace nn = torch::nn;

struct Found {
  std::string role, evidence, why;
  Layout layout;
  bool center;
};

std::map<std::string, Found> found(const nn::Module& module) {
  const CaughtWarnings warnings;
  std::map<std::string, Found> result;
  for (const auto& group : param_groups(module)) {
    const auto& options = static_cast<const EquivariantOptions&>(group.options());
    for (size_t i = 0; i < group.params().size(); ++i) {
      result[options.param_names()[i]] = {options.role(), options.evidence()[i], options.why()[i],
                                          options.layout(), options.center()};
    }
  }
  return result;
}

constexpr int64_t kWidth = 8, kNeurons = 24, kTokens = 40;

struct AttentionImpl : nn::Module {
  AttentionImpl() {
    for (const char* name : {"wq", "wk", "wv", "wo"}) {
      register_module(name, nn::Linear(nn::LinearOptions(kWidth, kWidth).bias(false)));
    }
  }
};

struct FeedForwardImpl : nn::Module {
  FeedForwardImpl() {
    register_module("w1", nn::Linear(kWidth, kNeurons));
    register_module("w2", nn::Linear(kNeurons, kWidth));
    register_module("w3", nn::Linear(kWidth, kNeurons));
  }
};

struct BlockImpl : nn::Module {
  BlockImpl() {
    register_module("attention", std::make_shared<AttentionImpl>());
    register_module("feed_forward", std::make_shared<FeedForwardImpl>());
  }
};

struct Llama : nn::Module {
  explicit Llama(const char* table = "tok_embeddings", const char* head = "output") {
    register_module(table, nn::Embedding(kTokens, kWidth));
    nn::ModuleList layers;
    for (int i = 0; i < 3; ++i) layers->push_back(std::make_shared<BlockImpl>());
    register_module("layers", layers);
    register_module(head, nn::Linear(kWidth, kTokens));
  }
};

TEST(RoutingGrades, ConventionsAreRecognisedWithoutHeads) {
  const auto of = found(Llama());
  for (const char* name : {"wq", "wk", "wv", "wo"}) {
    const Found& map = of.at(std::string("layers.1.attention.") + name + ".weight");
    EXPECT_EQ(map.role, "attention") << name;
    EXPECT_EQ(map.evidence, "recognised") << name;
    EXPECT_NE(map.why.find("how many heads is not said"), std::string::npos) << map.why;
    EXPECT_TRUE(map.layout.empty()) << name;
  }
  EXPECT_EQ(of.at("layers.2.feed_forward.w1.weight").role, "mlp_in");
  EXPECT_EQ(of.at("layers.2.feed_forward.w3.weight").role, "mlp_in");
  EXPECT_EQ(of.at("layers.2.feed_forward.w2.weight").role, "mlp_out");
  EXPECT_EQ(of.at("tok_embeddings.weight").evidence, "declared");
  EXPECT_EQ(of.at("output.weight").role, "lm_head");
  EXPECT_EQ(of.at("output.weight").evidence, "recognised");
  EXPECT_TRUE(of.at("output.weight").center);
}

TEST(RoutingGrades, AHeadByShapeAloneIsAssumedAndNotCentered) {
  const auto of = found(Llama("table", "last"));
  EXPECT_EQ(of.at("last.weight").role, "lm_head");
  EXPECT_EQ(of.at("last.weight").evidence, "assumed");
  EXPECT_FALSE(of.at("last.weight").center);
}

TEST(RoutingGrades, OneWarningSaysWhatIsAssumed) {
  const CaughtWarnings warnings;
  nn::Sequential model(nn::Linear(4, 6), nn::Linear(6, 6), nn::Linear(6, 6));
  param_groups(*model);
  ASSERT_EQ(warnings.messages().size(), 1u);
  const std::string message = warnings.messages().front();
  for (const char* words :
       {"the role of 3 of 3 matrices (100.0% of their elements) is only assumed",
        "  0.weight [6, 4]: dense, as a Linear", "2 × *.weight [6, 6]: dense",
        "    {\"*.weight\", EquivariantOptions().role(\"dense\")},\n"
        "    {\"0.weight\", EquivariantOptions().role(\"dense\")},\n"}) {
    EXPECT_NE(message.find(words), std::string::npos) << words << " in " << message;
  }
  // Said by the caller, it is sure.
  param_groups(*model, {{"*.weight", EquivariantOptions().role("dense")}});
  EXPECT_EQ(warnings.messages().size(), 1u);
}

TEST(RoutingGrades, StrictListsAllThatIsAssumed) {
  nn::Sequential model;
  for (int64_t i = 1; i <= 20; ++i) model->push_back(nn::Linear(4, i));
  std::vector<std::string> lines;
  for (int64_t i = 1; i <= 20; ++i) lines.push_back("[" + std::to_string(i) + ", 4]: dense");
  expect_raises<c10::ValueError>(lines, [&] { param_groups(*model, {}, "match_rms_adamw", true); });
  // A mistyped override is named first.
  expect_raises<c10::ValueError>({"\"*.wieght\""}, [&] {
    param_groups(*model, {{"*.wieght", EquivariantOptions(0.1)}}, "match_rms_adamw", true);
  });
  const CaughtWarnings warnings;
  param_groups(*model);
  ASSERT_EQ(warnings.messages().size(), 1u);
  EXPECT_NE(warnings.messages().front().find("... and 8 more kinds"), std::string::npos);
  nn::LSTM declared(3, 4);
  param_groups(*declared, {}, "match_rms_adamw", true);
}

TEST(RoutingGrades, VectorsInDisguiseAreNeverAssumed) {
  nn::Module model;
  model.register_parameter("mystery", torch::randn({5, 1, 1}));
  model.register_parameter("token", torch::randn({1, 1, 5}));
  model.register_parameter("number", torch::randn({}));
  for (const auto& [name, of] : found(model)) {
    EXPECT_EQ(of.role, "other") << name;
    EXPECT_EQ(of.evidence, "declared") << name;
  }
}

// Each module holds the one before twice: 2^40 paths lead to the one matrix.
TEST(RoutingGrades, NestedSharingIsWalkedOnce) {
  std::shared_ptr<nn::Module> module = nn::Linear(4, 4).ptr();
  for (int i = 0; i < 40; ++i) {
    const auto outer = std::make_shared<nn::Module>();
    outer->register_module("a", module);
    outer->register_module("b", module);
    module = outer;
  }
  const auto of = found(*module);
  ASSERT_EQ(of.size(), 2u);
  std::string first;
  for (int i = 0; i < 40; ++i) first += "a.";
  EXPECT_TRUE(of.count(first + "weight"));
}

TEST(RoutingGrades, DeepModelsAreWalkedWithoutRecursion) {
  std::vector<std::shared_ptr<nn::Module>> chain = {nn::Linear(4, 4).ptr()};
  for (int i = 0; i < 3000; ++i) {
    chain.push_back(std::make_shared<nn::Module>());
    chain.back()->register_module("a", chain[chain.size() - 2]);
  }
  EXPECT_EQ(found(*chain.back()).size(), 2u);
}

TEST(RoutingGrades, CyclesEnd) {
  // Containers alone: what owns the map is sought above it in vain.
  const auto a = std::make_shared<nn::ModuleListImpl>(), b = std::make_shared<nn::ModuleListImpl>();
  a->register_module("b", b);
  a->register_module("linear", nn::Linear(4, 4).ptr());
  b->register_module("a", std::static_pointer_cast<nn::Module>(a));
  EXPECT_EQ(found(*a).size(), 2u);
  b->unregister_module("a");
}

}  // namespace
}  // namespace erlangen
