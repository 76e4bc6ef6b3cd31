// Layouts as views, against loops over the indices that each step's meaning names.

#include "layout.h"

#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::expect_raises;

// All logical matrices of `tensor`, section after section, each as [m, n].
std::vector<torch::Tensor> matrices(const Layout& layout, const torch::Tensor& tensor) {
  std::vector<torch::Tensor> result;
  for (const auto& view : matrix_views(layout, tensor.sizes(), tensor.strides(), "here")) {
    const auto batch = view.of(tensor).reshape({view.count(), view.m(), view.n()});
    for (const auto& matrix : batch.unbind()) result.push_back(matrix);
  }
  return result;
}

torch::Tensor numbered(at::IntArrayRef sizes) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return torch::arange(count).reshape(sizes);
}

// A matrix whose entry (i, j) is entry(i, j) of the numbered tensor.
template <typename Entry>
torch::Tensor matrix(int64_t m, int64_t n, Entry&& entry) {
  auto result = torch::empty({m, n}, at::kLong);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) result[i][j] = int64_t{entry(i, j)};
  }
  return result;
}

void expect_matrices(const Layout& layout, const torch::Tensor& tensor,
                     const std::vector<torch::Tensor>& expected) {
  // With the usual strides, and with others.
  for (const auto& t : {tensor, tensor.mT().contiguous().mT()}) {
    const auto found = matrices(layout, t);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_TRUE(torch::equal(found[i], expected[i])) << "matrix " << i << ":\n"
                                                       << found[i] << "\nexpected\n"
                                                       << expected[i];
    }
  }
}

TEST(Layout, None) {
  expect_matrices({}, numbered({8, 6}), {matrix(8, 6, [](auto i, auto j) { return 6 * i + j; })});
}

TEST(Layout, LeadingDimensionsAreABatch) {
  std::vector<torch::Tensor> expected;
  for (int64_t b = 0; b < 6; ++b) {
    expected.push_back(matrix(4, 5, [&](auto i, auto j) { return 20 * b + 5 * i + j; }));
  }
  expect_matrices({}, numbered({2, 3, 4, 5}), expected);
}

TEST(Layout, Transpose) {
  expect_matrices({LayoutStep::transpose()}, numbered({8, 6}),
                  {matrix(6, 8, [](auto i, auto j) { return 6 * j + i; })});
}

TEST(Layout, Heads) {
  std::vector<torch::Tensor> rows, columns;
  for (int64_t h = 0; h < 4; ++h) {
    rows.push_back(matrix(2, 6, [&](auto i, auto j) { return 6 * (2 * h + i) + j; }));
  }
  for (int64_t h = 0; h < 3; ++h) {
    columns.push_back(matrix(8, 2, [&](auto i, auto j) { return 6 * i + 2 * h + j; }));
  }
  expect_matrices({LayoutStep::heads(4, -2)}, numbered({8, 6}), rows);
  expect_matrices({LayoutStep::heads(3, -1)}, numbered({8, 6}), columns);
}

TEST(Layout, Sections) {
  std::vector<torch::Tensor> rows, columns;
  for (const auto& [begin, size] : {std::pair<int64_t, int64_t>{0, 3}, {3, 4}, {7, 1}}) {
    rows.push_back(matrix(size, 6, [&](auto i, auto j) { return 6 * (begin + i) + j; }));
  }
  for (const auto& [begin, size] : {std::pair<int64_t, int64_t>{0, 1}, {1, 5}}) {
    columns.push_back(matrix(8, size, [&](auto i, auto j) { return 6 * i + begin + j; }));
  }
  expect_matrices({LayoutStep::sections({3, 4, 1}, -2)}, numbered({8, 6}), rows);
  expect_matrices({LayoutStep::sections({1, 5}, -1)}, numbered({8, 6}), columns);
}

// Unit r's gate row is gate(r), its up row up(r); both make one row of twice the length.
TEST(Layout, Pairs) {
  const auto t = numbered({8, 6});
  expect_matrices({LayoutStep::pairs("concatenated", -2)}, t,
                  {matrix(4, 12, [](auto i, auto j) { return 6 * (i + 4 * (j / 6)) + j % 6; })});
  expect_matrices({LayoutStep::pairs("interleaved", -2)}, t,
                  {matrix(4, 12, [](auto i, auto j) { return 6 * (2 * i + j / 6) + j % 6; })});
  // Along columns units are columns, seen as rows all the same.
  expect_matrices({LayoutStep::pairs("concatenated", -1)}, t,
                  {matrix(3, 16, [](auto i, auto j) { return 6 * (j % 8) + i + 3 * (j / 8); })});
  expect_matrices({LayoutStep::pairs("interleaved", -1)}, t,
                  {matrix(3, 16, [](auto i, auto j) { return 6 * (j % 8) + 2 * i + j / 8; })});
}

TEST(Layout, Flatten) {
  const auto expected = matrix(4, 18, [](auto i, auto j) { return 18 * i + j; });
  expect_matrices({LayoutStep::flatten()}, numbered({4, 2, 3, 3}), {expected});
  expect_matrices({LayoutStep::flatten(), LayoutStep::transpose()}, numbered({4, 2, 3, 3}),
                  {expected.t()});
}

TEST(Layout, FlattenKernels) {
  const Layout kernels = {LayoutStep::flatten_kernels()};
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{4, 2, 3, 3}, {4, 2, 1, 3, 2}}) {
    const auto t = numbered(sizes);
    expect_matrices(kernels, t, {t.reshape({4, -1})});
  }
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{4, 6}, {2, 4, 6}}) {
    const auto batch = numbered(sizes).reshape({-1, 4, 6});
    expect_matrices(kernels, numbered(sizes), batch.unbind());
  }
}

TEST(Layout, ExpertsGateUp) {
  // [E, d, 2r] with interleaved units becomes [E, r, 2d].
  std::vector<torch::Tensor> expected;
  for (int64_t e = 0; e < 3; ++e) {
    expected.push_back(
        matrix(2, 10, [&](auto i, auto j) { return 20 * e + 4 * (j % 5) + 2 * i + j / 5; }));
  }
  expect_matrices({LayoutStep::transpose(), LayoutStep::pairs("interleaved", -2)},
                  numbered({3, 5, 4}), expected);
}

TEST(Layout, FusedQkvPerHead) {
  std::vector<torch::Tensor> expected;
  for (int64_t begin = 0; begin < 16; begin += 4) {  // q: 2 heads of 4 rows
    if (begin >= 8) break;
    expected.push_back(matrix(4, 3, [&](auto i, auto j) { return 3 * (begin + i) + j; }));
  }
  for (int64_t begin : {8, 10, 12, 14}) {  // k, v: 2 heads of 2 rows
    expected.push_back(matrix(2, 3, [&](auto i, auto j) { return 3 * (begin + i) + j; }));
  }
  expect_matrices({LayoutStep::sections({8, 4, 4}, -2), LayoutStep::heads(2, -2)},
                  numbered({16, 3}), expected);
}

TEST(Layout, GroupedConvolution) {
  std::vector<torch::Tensor> expected;
  for (int64_t g = 0; g < 2; ++g) {
    expected.push_back(matrix(3, 8, [&](auto i, auto j) { return 8 * (3 * g + i) + j; }));
  }
  expect_matrices({LayoutStep::flatten(), LayoutStep::heads(2, -2)}, numbered({6, 2, 2, 2}),
                  expected);
}

TEST(Layout, HeadsOfPairsAndPairsOfHeads) {
  const auto t = numbered({8, 2});
  std::vector<torch::Tensor> pairs_of_heads;
  for (int64_t h = 0; h < 2; ++h) {
    pairs_of_heads.push_back(
        matrix(2, 4, [&](auto i, auto j) { return 2 * (4 * h + i + 2 * (j / 2)) + j % 2; }));
  }
  expect_matrices({LayoutStep::heads(2, -2), LayoutStep::pairs("concatenated", -2)}, t,
                  pairs_of_heads);
  std::vector<torch::Tensor> heads_of_pairs;
  for (int64_t h = 0; h < 2; ++h) {
    heads_of_pairs.push_back(
        matrix(2, 4, [&](auto i, auto j) { return 2 * (2 * h + i + 4 * (j / 2)) + j % 2; }));
  }
  expect_matrices({LayoutStep::pairs("concatenated", -2), LayoutStep::heads(2, -2)}, t,
                  heads_of_pairs);
}

TEST(Layout, ViewsAlias) {
  auto t = torch::zeros({8, 6});
  for (const auto& view :
       matrix_views({LayoutStep::sections({4, 4}, -2)}, t.sizes(), t.strides(), "here")) {
    view.of(t).add_(1.0);
  }
  EXPECT_TRUE(torch::equal(t, torch::ones({8, 6})));
}

TEST(Layout, OffsetOfTheTensorItself) {
  const auto t = numbered({10, 6}).narrow(0, 2, 8);
  expect_matrices({LayoutStep::heads(2, -2)}, t, {t.narrow(0, 0, 4), t.narrow(0, 4, 4)});
}

TEST(Layout, SizesThatDoNotFit) {
  const auto refuse = [](const Layout& layout, at::IntArrayRef sizes,
                         std::vector<std::string> words) {
    words.push_back("here");
    const auto t = torch::empty(sizes);
    expect_raises<c10::ValueError>(words,
                                   [&] { matrix_views(layout, t.sizes(), t.strides(), "here"); });
  };
  refuse({}, {8}, {"[8]", "two dimensions", "FSDP1"});
  refuse({}, {0, 4}, {"[0, 4]"});
  refuse({LayoutStep::heads(3, -2)}, {8, 6}, {"heads", "3", "8"});
  refuse({LayoutStep::heads(0, -2)}, {8, 6}, {"heads", "positive"});
  refuse({LayoutStep::heads(2, 0)}, {8, 6}, {"dim", "-2", "0"});
  refuse({LayoutStep::sections({3, 4}, -2)}, {8, 6}, {"sections", "[3, 4]", "7", "8"});
  refuse({LayoutStep::sections({9, -1}, -2)}, {8, 6}, {"sections", "positive"});
  refuse({LayoutStep::sections({}, -2)}, {8, 6}, {"sections", "8"});
  refuse({LayoutStep::pairs("interleaved", -1)}, {8, 5}, {"pairs", "even", "5"});
  refuse({LayoutStep::pairs("mixed", -1)}, {8, 6}, {"mixed", "concatenated", "interleaved"});
  refuse({LayoutStep::transpose(), LayoutStep::flatten()}, {8, 6}, {"flatten", "first"});
  refuse({{"flatten", {}, "all", -2}}, {8, 6}, {"flatten", "kernels", "all"});
  refuse({{"rows", {}, "", -2}}, {8, 6}, {"rows", "transpose", "sections", "heads"});
}

TEST(Layout, SplitsUnits) {
  EXPECT_FALSE(splits_units({}));
  EXPECT_FALSE(splits_units({LayoutStep::flatten(), LayoutStep::transpose()}));
  EXPECT_TRUE(splits_units({LayoutStep::transpose(), LayoutStep::heads(2, -2)}));
  EXPECT_TRUE(splits_units({LayoutStep::sections({1}, -2)}));
  EXPECT_TRUE(splits_units({LayoutStep::pairs("interleaved", -2)}));
}

}  // namespace
}  // namespace erlangen
