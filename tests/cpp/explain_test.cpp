// Equivariant::explain: one line a kind, or a line each.

#include <algorithm>
#include <sstream>

#include "test_helpers.h"

namespace erlangen {
namespace {

namespace nn = torch::nn;

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> result;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) result.push_back(line);
  return result;
}

bool has(const std::string& line, const std::vector<std::string>& words) {
  size_t at = 0;
  for (const std::string& word : words) {
    at = line.find(word, at);
    if (at == std::string::npos) return false;
    at += word.size();
  }
  return true;
}

struct Layered : nn::Module {
  Layered() {
    register_module("table", nn::Embedding(40, 8));
    nn::ModuleList layers;
    for (int i = 0; i < 12; ++i) layers->push_back(nn::GRUCell(8, i == 11 ? 4 : 8));
    register_module("layers", layers);
  }
};

TEST(Explain, OneLineAKind) {
  const Layered model;
  const Equivariant optimizer(param_groups(model));
  const auto table = lines(optimizer.explain());
  ASSERT_FALSE(table.empty());
  EXPECT_TRUE(has(
      table[0], {"parameter", "shape", "role", "rule", "logical matrices", "update scale", "why"}))
      << table[0];
  const auto shown = [&](const std::vector<std::string>& words) {
    return std::count_if(table.begin(), table.end(),
                         [&](const std::string& line) { return has(line, words); });
  };
  EXPECT_EQ(shown({"table.weight", "40×8", "embedding", "row_norm", "declared: a lookup table"}),
            1);
  EXPECT_EQ(shown({"11 × layers.*.weight_ih", "24×8", "dense", "3 of 8×8",
                   "declared: of a recurrent layer"}),
            1);
  EXPECT_EQ(shown({"layers.11.weight_ih", "12×8", "3 of 4×8"}), 1);  // a shape of its own
  EXPECT_EQ(shown({"layers.0."}), 0);
  EXPECT_EQ(table.size(), 1u + 1u + 2u * 4u);
}

TEST(Explain, FullHasALineEach) {
  const Layered model;
  const Equivariant optimizer(param_groups(model));
  const auto table = lines(optimizer.explain(/*full=*/true));
  EXPECT_EQ(table.size(), 1u + 1u + 12u * 4u);
  const auto first = std::find_if(table.begin(), table.end(), [](const std::string& line) {
    return has(line, {"layers.0.weight_ih"});
  });
  ASSERT_NE(first, table.end());
  EXPECT_TRUE(has(*first, {"24×8", "dense"})) << *first;
}

TEST(Explain, GroupsThatNobodyRoutedHaveNoReasons) {
  const Equivariant optimizer(std::vector<torch::Tensor>{torch::randn({3, 4}).requires_grad_()},
                              EquivariantOptions().rule("spectral"));
  const auto table = lines(optimizer.explain());
  ASSERT_EQ(table.size(), 2u);
  EXPECT_FALSE(has(table[0], {"why"}));
  EXPECT_TRUE(has(table[1], {"group 0 [0]", "3×4", "-", "spectral", "3×4"})) << table[1];
}

}  // namespace
}  // namespace erlangen
