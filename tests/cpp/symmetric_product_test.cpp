// Products known to be symmetric, on the CPU.
#include "symmetric_product.h"

#include "test_helpers.h"

#include <ATen/Parallel.h>

#include <array>
#include <cmath>

namespace {

using namespace erlangen;
using erlangen::testing::same_bits;

constexpr at::ScalarType kDTypes[] = {at::kFloat, at::kDouble, at::kBFloat16};
// Below and above the sizes from which matrices are cut into strips; tails of a strip.
constexpr int64_t kSizes[] = {1, 5, 64, 129, 256, 300, 520, 640};

at::Tensor small_integers(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::randint(-2, 3, sizes, at::kDouble).to(dtype);
}

at::Tensor poisoned(const at::Tensor& like, int64_t batch, int64_t n) {
  return at::full({batch, n, n}, NAN, like.options());
}

TEST(SymmetricProduct, SmallIntegersAreExact) {
  at::manual_seed(0);
  for (const auto dtype : kDTypes) {
    for (const int64_t n : kSizes) {
      const at::Tensor a = small_integers({2, n, 37}, dtype);
      const at::Tensor root = small_integers({2, n, 3}, dtype);
      const at::Tensor c = at::matmul(root, root.mT());
      for (const double beta : {0.0, -0.5}) {
        const at::Tensor out = poisoned(a, 2, n);
        symmetric_product_out(out, beta == 0.0 ? at::Tensor() : c, a, a, beta, 1.5);
        const at::Tensor exact =
            1.5 * at::matmul(a.to(at::kDouble), a.to(at::kDouble).mT()) + beta * c.to(at::kDouble);
        EXPECT_TRUE(same_bits(out, exact.to(dtype) + 0.0)) << dtype << " " << n << " " << beta;
      }
    }
  }
}

TEST(SymmetricProduct, IsMirroredToTheBit) {
  at::manual_seed(1);
  for (const auto dtype : kDTypes) {
    for (const int64_t n : kSizes) {
      const at::Tensor a = at::randn({2, n, 50}, dtype), b = at::randn({2, n, 50}, dtype);
      const at::Tensor out = poisoned(a, 2, n);
      symmetric_product_out(out, {}, a, b, 0.0, 1.0);
      EXPECT_TRUE(same_bits(out, out.mT().contiguous())) << dtype << " " << n;
      // Below the diagonal the product itself, up to a rounding for each term and its own.
      const at::Tensor wide_a = a.to(at::kDouble), wide_b = b.to(at::kDouble);
      const double unit = dtype == at::kBFloat16 ? 0x1p-8 : dtype == at::kFloat ? 0x1p-24 : 0x1p-53;
      const double sum_unit = std::min(unit, 0x1p-24);
      const at::Tensor magnitudes = at::matmul(wide_a.abs(), wide_b.abs().mT());
      const at::Tensor exact = at::matmul(wide_a, wide_b.mT());
      const at::Tensor off = (out.to(at::kDouble) - exact).abs().tril();
      const at::Tensor allowed = magnitudes * (52 * sum_unit) + exact.abs() * unit * 1.01;
      EXPECT_TRUE((off <= allowed).all().item<bool>()) << dtype << " " << n;
    }
  }
}

// Whatever the number of threads and whatever stands beside a matrix.
TEST(SymmetricProduct, ThreadsAndBatchDoNotMatter) {
  at::manual_seed(2);
  const int threads = at::get_num_threads();
  for (const auto dtype : kDTypes) {
    // With rows and columns that are vectors: ATen takes these otherwise.
    const std::array<int64_t, 3> shapes[] = {{4, 1001, 40},   {33, 1001, 40},  {64, 1001, 40},
                                             {129, 1001, 40}, {300, 1001, 40}, {520, 1001, 40},
                                             {1, 512, 40},    {128, 1, 40},    {128, 512, 1}};
    for (const auto& [n, k, columns] : shapes) {
      const at::Tensor a = at::randn({5, n, k}, dtype), b = at::randn({5, n, k}, dtype);
      const at::Tensor c = at::randn({5, n, n}, dtype), wide = at::randn({5, k, columns}, dtype);
      at::set_num_threads(1);
      const at::Tensor symmetric = poisoned(a, 5, n);
      const at::Tensor product = at::full({5, n, columns}, NAN, dtype);
      symmetric_product_out(symmetric, c, a, b, 0.5, 1.5);
      product_out(product, {}, a, wide, 0.0, 1.0);
      for (const int count : {1, 2, 3}) {
        at::set_num_threads(count);
        for (const int64_t batch : {1, 2, 5}) {
          const auto first = [&](const at::Tensor& t) { return t.narrow(0, 0, batch); };
          const at::Tensor out = poisoned(a, batch, n);
          const at::Tensor plain_out = at::full({batch, n, columns}, NAN, dtype);
          symmetric_product_out(out, first(c), first(a), first(b), 0.5, 1.5);
          product_out(plain_out, {}, first(a), first(wide), 0.0, 1.0);
          const auto shape = c10::str(dtype, " ", batch, " of ", n, " x ", k, " x ", columns);
          EXPECT_TRUE(same_bits(out, first(symmetric))) << shape;
          EXPECT_TRUE(same_bits(plain_out, first(product))) << shape;
        }
      }
    }
  }
  at::set_num_threads(threads);
}

TEST(SymmetricProduct, NothingToDo) {
  const at::Tensor empty = at::empty({0, 4, 4});
  symmetric_product_out(empty, {}, at::empty({0, 4, 3}), at::empty({0, 4, 3}), 0.0, 1.0);
  const at::Tensor zeros = at::full({2, 4, 4}, NAN);
  symmetric_product_out(zeros, {}, at::empty({2, 4, 0}), at::empty({2, 4, 0}), 0.0, 1.0);
  EXPECT_TRUE(at::equal(zeros, at::zeros({2, 4, 4})));
}

}  // namespace
