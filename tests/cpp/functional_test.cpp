// The bare rules in C++, in float64 by the exact method, against what their names say of a plain
// SVD.

#include <limits>

#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::expect_raises;

const PolarOptions kExact = {.ns_method = "exact"};

// [2, m, n] with singular values from 0.5 to 2: well conditioned, so that rounding alone counts.
torch::Tensor well_conditioned(int64_t m, int64_t n) {
  const auto x = torch::randn({2, m, n}, at::kDouble);
  const auto [u, s, vh] = torch::linalg_svd(x, /*full_matrices=*/false);
  return (u * torch::linspace(0.5, 2.0, std::min(m, n), at::kDouble).unsqueeze(0)).matmul(vh) *
         torch::tensor({1.0, 1e-3}, at::kDouble).view({2, 1, 1});
}

// From a plain SVD: U·Vᵀ over the singular values that are not zero, times the nuclear norm to the
// power alpha.
torch::Tensor polar_by_svd(const torch::Tensor& x, double alpha = 0.0) {
  const auto [u, s, vh] = torch::linalg_svd(x, /*full_matrices=*/false);
  const auto kept = s.gt(1e-9 * s.amax(-1, true)).to(at::kDouble);
  return (u * kept.unsqueeze(-2)).matmul(vh) * (s * kept).sum(-1).pow(alpha).view({-1, 1, 1});
}

torch::Tensor rows_by_hand(const torch::Tensor& x) {
  return x / x.square().sum(-1, /*keepdim=*/true).sqrt();
}

torch::Tensor centered_by_hand(const torch::Tensor& x) { return x - x.mean(-2, true); }

// `z` is what a polar factor was made of. Its Gram matrix has the square of its condition number,
// and each entry, a sum of at most 8 terms, rounds 8 times; 64 for what the factor is made of
// after.
void expect_close(const torch::Tensor& result, const torch::Tensor& expected,
                  const torch::Tensor& z, const char* what) {
  EXPECT_EQ(result.scalar_type(), at::kDouble) << what;
  ASSERT_EQ(result.sizes(), expected.sizes()) << what;
  const auto s = torch::linalg_svdvals(z), largest = s.amax(-1, true);
  const auto smallest = s.masked_fill(s.le(1e-9 * largest), 1e9).amin(-1, true);
  const double condition = (largest / smallest).amax().item<double>();
  const auto error = (result - expected).abs().amax({-2, -1}) / expected.abs().amax({-2, -1});
  constexpr double kEps = std::numeric_limits<double>::epsilon();
  EXPECT_LE(error.amax().item<double>(), 64 * 8 * condition * condition * kEps) << what;
}

class Functional : public ::testing::TestWithParam<std::pair<int64_t, int64_t>> {
 protected:
  Functional() { torch::manual_seed(0); }
  torch::Tensor x_ = well_conditioned(GetParam().first, GetParam().second);
};

TEST_P(Functional, PolarRules) {
  for (const double alpha : {0.0, 1.0, -0.5}) {
    const auto expected = polar_by_svd(x_, alpha);
    expect_close(spectral(x_, alpha, kExact), expected, x_, "spectral");
    expect_close(right_spectral(x_, alpha, kExact), expected, x_, "right_spectral");
    expect_close(left_spectral(x_, alpha, kExact), expected, x_, "left_spectral");
  }
}

TEST_P(Functional, Norms) {
  expect_close(row_norm(x_), rows_by_hand(x_), x_, "row_norm");
  expect_close(column_norm(x_), rows_by_hand(x_.mT()).mT(), x_, "column_norm");
  expect_close(center(x_), centered_by_hand(x_), x_, "center");
}

TEST_P(Functional, Hybrid) {
  const auto y = rows_by_hand(x_);
  expect_close(hybrid(x_, "row_then_polar", false, 1.0, kExact), polar_by_svd(y, 1.0), y,
               "row_then_polar");
  expect_close(hybrid(x_, "polar_then_row", false, 0.0, kExact), rows_by_hand(polar_by_svd(x_)), x_,
               "polar_then_row");
}

// With no more rows than columns the centered rows are dependent, and one singular value is zero.
TEST_P(Functional, HybridCentered) {
  const auto c = centered_by_hand(x_), y = centered_by_hand(rows_by_hand(c));
  expect_close(hybrid(x_, "row_then_polar", true, 1.0, kExact),
               centered_by_hand(polar_by_svd(y, 1.0)), y, "row_then_polar");
  expect_close(hybrid(x_, "polar_then_row", true, 0.0, kExact),
               centered_by_hand(rows_by_hand(polar_by_svd(c))), c, "polar_then_row");
}

INSTANTIATE_TEST_SUITE_P(Shapes, Functional,
                         ::testing::Values(std::pair(8, 5), std::pair(5, 8), std::pair(6, 6)));

TEST(Functional, TheDefaultMethodIsPolarWithinTheBandOfItsPolynomials) {
  // Singular values of 0.25 of the largest and more: polar_express in 5 steps takes [1e-2, 1] to
  // [0.85, 1.12], and leaves the singular vectors as they are.
  torch::manual_seed(0);
  const auto x = well_conditioned(8, 5);
  const auto [u, s, vh] = torch::linalg_svd(x, /*full_matrices=*/false);
  for (const auto& result : {spectral(x), right_spectral(x), left_spectral(x)}) {
    const auto inner = u.mT().matmul(result).matmul(vh.mT());
    const auto diagonal = inner.diagonal(0, -2, -1);
    EXPECT_GE(diagonal.amin().item<double>(), 0.85);
    EXPECT_LE(diagonal.amax().item<double>(), 1.12);
    const auto rest = inner - diagonal.diag_embed();
    EXPECT_LE(rest.abs().amax().item<double>(), 1e-4);  // float32 products, 15 in a row
  }
}

TEST(Functional, BadInput) {
  expect_raises<c10::ValueError>({"[4]"}, [] { row_norm(torch::ones({4})); });
  expect_raises<c10::TypeError>({"Int"}, [] { spectral(torch::ones({4, 4}, at::kInt)); });
  expect_raises<c10::ValueError>({"order", "polar"}, [] { hybrid(torch::ones({4, 4}), "polar"); });
  expect_raises<c10::ValueError>({"ns_method", "fast"}, [] {
    spectral(torch::ones({4, 4}), 0.0, {.ns_method = "fast"});
  });
}

}  // namespace
}  // namespace erlangen
