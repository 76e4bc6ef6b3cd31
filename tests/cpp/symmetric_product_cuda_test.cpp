// The CUDA kernels of symmetric products, run on the host, against an oracle in double.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "cuda_on_host.h"
#include "half_matrices.h"
#include "kernels/cuda/mirror_lower.cuh"
#include "kernels/cuda/symmetric_product.cuh"

namespace {

using namespace erlangen::testing;
using cuda_on_host::Device;
using cuda_on_host::Order;
using erlangen::kernels::cuda::mirror_lower;
using erlangen::kernels::cuda::symmetric_product;
using erlangen::kernels::cuda::symmetric_product_supports;
using erlangen::kernels::cuda::symmetric_product_workspace;
using erlangen::kernels::cuda::SymmetricProduct;

// With a workspace that is NaN before, and what lies behind it after.
void run_product(const SymmetricProduct& product) {
  const size_t floats = symmetric_product_workspace(product) / sizeof(float);
  std::vector<float> workspace(floats + 16, NAN);
  ASSERT_EQ(symmetric_product(product, workspace.data(), nullptr), cudaSuccess)
      << cuda_on_host::take_failure();
  for (size_t i = floats; i < workspace.size(); ++i) ASSERT_TRUE(std::isnan(workspace[i]));
}

struct Problem {
  Matrices a, b, c, d;
  float alpha, beta;

  Problem(DType dtype, int64_t batch, int64_t n, int64_t k, float alpha, float beta,
          int64_t padding = 0)
      : a(dtype, batch, n, k, padding),
        b(dtype, batch, n, k, 2 * padding),
        c(dtype, batch, n, n, 3 * padding),
        d(dtype, batch, n, n, padding),
        alpha(alpha),
        beta(beta) {}
  // C only below the diagonal and on it: the rest is not to be read.
  void draw(unsigned seed, bool integers) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    const auto number = [&] {
      return integers ? static_cast<double>(static_cast<int>(generator() % 5)) - 2.0
                      : normal(generator);
    };
    a.fill(number);
    b.fill(number);
    for (int64_t m = 0; m < c.batch; ++m) {
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t col = 0; col <= r; ++col) c.set(m, r, col, number());
      }
    }
  }
  SymmetricProduct product() {
    return {a.data(), b.data(), beta == 0 ? nullptr : c.data(),
            d.data(), a.batch,  a.rows,
            a.cols,   a.row,    b.row,
            c.row,    d.row,    a.matrix,
            b.matrix, c.matrix, d.matrix,
            alpha,    beta,     a.dtype};
  }
  void run() { run_product(product()); }
  void expect_symmetric() {
    for (int64_t m = 0; m < d.batch; ++m) {
      for (int64_t r = 0; r < d.rows; ++r) {
        for (int64_t col = 0; col < r; ++col) ASSERT_EQ(d.bits(m, r, col), d.bits(m, col, r));
      }
    }
  }
  // f(matrix, row, column, exact value, sum of magnitudes) on and below the diagonal.
  template <typename F>
  void each_exact(F&& f) {
    std::vector<double> left(a.rows * a.cols), right(a.rows * a.cols);
    for (int64_t m = 0; m < d.batch; ++m) {
      for (int64_t r = 0; r < a.rows; ++r) {
        for (int64_t i = 0; i < a.cols; ++i) {
          left[r * a.cols + i] = a.get(m, r, i);
          right[r * a.cols + i] = b.get(m, r, i);
        }
      }
      for (int64_t r = 0; r < d.rows; ++r) {
        for (int64_t col = 0; col <= r; ++col) {
          double sum = 0, magnitudes = 0;
          for (int64_t i = 0; i < a.cols; ++i) {
            const double term = left[r * a.cols + i] * right[col * a.cols + i];
            sum += term, magnitudes += std::fabs(term);
          }
          const double from_c = beta == 0 ? 0 : beta * c.get(m, r, col);
          f(m, r, col, alpha * sum + from_c, std::fabs(alpha) * magnitudes + std::fabs(from_c));
        }
      }
    }
  }
};

class SymmetricProductCuda : public testing::Test {
 protected:
  void SetUp() override {
    cuda_on_host::device = {};
    cuda_on_host::launches.clear();
  }
};

constexpr DType kDTypes[] = {DType::bfloat16, DType::float16};

struct Size {
  int64_t batch, n, k;
  unsigned threads;     // which kernel is meant
  size_t launches = 1;  // two where k is cut into parts
};
// Tails of n and k, one tile and several, fewer steps in k than stages and more, parts of k.
const std::vector<Size> kSizes = {
    {1, 1, 1, 128},        {2, 1, 40, 128},   {3, 7, 9, 128},       {1, 8, 8, 128},
    {2, 33, 70, 128},      {1, 64, 64, 128},  {2, 65, 31, 128},     {1, 130, 200, 128},
    {1, 200, 33, 128},     {1, 511, 17, 128}, {1, 512, 40, 256},    {2, 515, 33, 256},
    {1, 640, 100, 256},    {3, 5, 0, 128},    {1, 8, 4096, 128, 2}, {2, 70, 4100, 128, 2},
    {1, 130, 8203, 128, 2}};

// Sums of small integers round nowhere before D.
void check_exactly(DType dtype, const Size& size, float beta, unsigned seed) {
  SCOPED_TRACE(testing::Message() << "dtype " << static_cast<int>(dtype) << " batch " << size.batch
                                  << " n " << size.n << " k " << size.k << " beta " << beta);
  Problem problem(dtype, size.batch, size.n, size.k, 1.5f, beta, seed % 2 * 8);
  problem.draw(seed, true);
  cuda_on_host::launches.clear();
  problem.run();
  if (testing::Test::HasFatalFailure()) return;
  ASSERT_EQ(cuda_on_host::launches.size(), size.launches);
  ASSERT_EQ(cuda_on_host::launches[0].block.x, size.threads);
  problem.each_exact([&](int64_t m, int64_t r, int64_t c, double exact, double) {
    ASSERT_EQ(problem.d.get(m, r, c), decode_half(dtype, encode_half(dtype, exact)))
        << "at " << m << ", " << r << ", " << c;
  });
  problem.expect_symmetric();
  problem.d.expect_gaps_untouched();
}

TEST_F(SymmetricProductCuda, SmallIntegersAreExact) {
  unsigned seed = 0;
  for (const DType dtype : kDTypes) {
    for (const Size& size : kSizes) {
      for (const float beta : {0.0f, -0.5f}) {
        check_exactly(dtype, size, beta, ++seed);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Once: no other size takes as long.
TEST_F(SymmetricProductCuda, PartsOfLargeTilesAreExact) {
  check_exactly(DType::bfloat16, {1, 513, 4099, 256, 2}, -0.5f, 1);
}

TEST_F(SymmetricProductCuda, MatchesOracle) {
  unsigned seed = 100;
  for (const DType dtype : kDTypes) {
    for (const Size& size : kSizes) {
      Problem problem(dtype, size.batch, size.n, size.k, 0.7f, 1.3f);
      problem.draw(++seed, false);
      problem.run();
      if (HasFatalFailure()) return;
      const Format f = format(dtype);
      problem.each_exact([&](int64_t m, int64_t r, int64_t c, double exact, double magnitudes) {
        // A float rounding for each of the sum's terms, and D's own.
        const double sums = (size.k + 4) * std::ldexp(magnitudes, -24);
        const int exponent = std::max(std::ilogb(std::fabs(exact) + sums), f.min_exponent);
        ASSERT_NEAR(problem.d.get(m, r, c), exact,
                    sums + std::ldexp(0.5, exponent - f.fraction_bits))
            << "n " << size.n << " k " << size.k << " at " << r << ", " << c;
      });
      problem.expect_symmetric();
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(SymmetricProductCuda, OrderAndDeviceDoNotMatter) {
  const Device devices[] = {{1, 1, 80, Order::backward, 0},
                            {3, 2, 80, Order::shuffled, 1},
                            {132, 4, 90, Order::shuffled, 2}};
  for (const Size& size :
       {Size{2, 150, 170, 128}, Size{1, 520, 130, 256}, Size{2, 70, 4100, 128, 2}}) {
    Problem start(DType::float16, size.batch, size.n, size.k, 1.0f, 0.5f);
    start.draw(1, false);
    cuda_on_host::device = {};
    Problem expected = start;
    expected.run();
    for (const Device& device : devices) {
      cuda_on_host::device = device;
      Problem problem = start;
      problem.run();
      if (HasFatalFailure()) return;
      for (int64_t i = 0; i < size.batch * expected.d.matrix; ++i) {
        ASSERT_EQ(problem.d.data()[i], expected.d.data()[i]);
      }
    }
  }
}

TEST_F(SymmetricProductCuda, OthersInTheBatchDoNotMatter) {
  for (const int64_t k : {70, 4100}) {
    Problem together(DType::bfloat16, 3, 100, k, 1.0f, 0.5f);
    together.draw(1, false);
    Problem alone = together;
    together.run();
    run_product(some_of(alone.product(), 0, 2));
    run_product(some_of(alone.product(), 2, 1));
    if (HasFatalFailure()) return;
    for (int64_t i = 0; i < 3 * alone.d.matrix; ++i) {
      ASSERT_EQ(alone.d.data()[i], together.d.data()[i]) << k;
    }
  }
}

TEST_F(SymmetricProductCuda, SignsAndPowersOfTwo) {
  for (const Size& size : {Size{1, 100, 70, 128}, Size{1, 513, 48, 256}}) {
    Problem plain(DType::bfloat16, 1, size.n, size.k, 1.0f, 0.5f);
    plain.draw(3, false);
    Problem flipped = plain, scaled = plain;
    const auto sign = [](int64_t r) { return r * 7 % 3 == 1 ? -1.0 : 1.0; };
    for (int64_t r = 0; r < size.n; ++r) {
      for (int64_t i = 0; i < size.k; ++i) {
        flipped.a.set(0, r, i, sign(r) * sign(i) * plain.a.get(0, r, i));
        flipped.b.set(0, r, i, sign(r) * sign(i) * plain.b.get(0, r, i));
        scaled.a.set(0, r, i, 16 * plain.a.get(0, r, i));
        scaled.b.set(0, r, i, 4 * plain.b.get(0, r, i));
      }
      for (int64_t c = 0; c <= r; ++c) {
        flipped.c.set(0, r, c, sign(r) * sign(c) * plain.c.get(0, r, c));
        scaled.c.set(0, r, c, 64 * plain.c.get(0, r, c));
      }
    }
    plain.run();
    flipped.run();
    scaled.run();
    if (HasFatalFailure()) return;
    for (int64_t r = 0; r < size.n; ++r) {
      for (int64_t c = 0; c < size.n; ++c) {
        ASSERT_EQ(flipped.d.get(0, r, c), sign(r) * sign(c) * plain.d.get(0, r, c));
        ASSERT_EQ(scaled.d.get(0, r, c), 64 * plain.d.get(0, r, c));
      }
    }
  }
}

TEST_F(SymmetricProductCuda, NotANumberStaysInItsRowAndColumn) {
  Problem problem(DType::float16, 2, 150, 40, 1.0f, 0.0f);
  problem.draw(5, false);
  problem.a.set(1, 70, 3, NAN);
  problem.b.set(1, 70, 3, NAN);
  problem.run();
  for (int64_t m = 0; m < 2; ++m) {
    for (int64_t r = 0; r < 150; ++r) {
      for (int64_t c = 0; c < 150; ++c) {
        ASSERT_EQ(std::isnan(problem.d.get(m, r, c)), m == 1 && (r == 70 || c == 70));
      }
    }
  }
}

TEST_F(SymmetricProductCuda, RefusesWhatItCannotTake) {
  Problem problem(DType::float16, 2, 20, 24, 1.0f, 1.0f);
  problem.draw(1, true);
  const SymmetricProduct good = problem.product();
  ASSERT_TRUE(symmetric_product_supports(good));
  const auto refused = [&](auto&& change) {
    SymmetricProduct p = good;
    change(&p);
    EXPECT_FALSE(symmetric_product_supports(p));
    EXPECT_EQ(symmetric_product(p, nullptr, nullptr), cudaErrorInvalidValue);
  };
  refused([](SymmetricProduct* p) { p->dtype = DType::float32; });
  refused([](SymmetricProduct* p) { p->a_row += 1; });
  refused([](SymmetricProduct* p) { p->b_batch += 4; });
  refused([](SymmetricProduct* p) { p->c_row += 4; });
  refused([](SymmetricProduct* p) { p->d_row += 2; });
  refused([](SymmetricProduct* p) { p->a = static_cast<const uint16_t*>(p->a) + 4; });
  refused([](SymmetricProduct* p) { p->d = static_cast<uint16_t*>(p->d) + 1; });
  SymmetricProduct nothing = good;
  nothing.batch = 0;
  EXPECT_EQ(symmetric_product(nothing, nullptr, nullptr), cudaSuccess);
  SymmetricProduct long_sums = good;
  long_sums.k = long_sums.a_row = long_sums.b_row = 8192;
  EXPECT_EQ(symmetric_product_workspace(good), 0u);
  EXPECT_GT(symmetric_product_workspace(long_sums), 0u);
  EXPECT_EQ(symmetric_product(long_sums, nullptr, nullptr), cudaErrorInvalidValue);
  EXPECT_TRUE(cuda_on_host::launches.empty());
}

template <typename T>
void check_mirror(int64_t batch, int64_t n) {
  const int64_t row = n + 3, matrix = n * row + 5;
  std::vector<T> before(batch * matrix);
  for (size_t i = 0; i < before.size(); ++i) before[i] = static_cast<T>(i * 2654435761u);
  std::vector<T> data = before;
  ASSERT_EQ(mirror_lower(data.data(), batch, n, row, matrix, sizeof(T), nullptr), cudaSuccess)
      << cuda_on_host::take_failure();
  for (int64_t i = 0; i < batch * matrix; ++i) {
    const int64_t m = i / matrix, r = i % matrix / row, c = i % matrix % row;
    const bool above = r < n && c < n && r < c;
    ASSERT_EQ(data[i], above ? before[m * matrix + c * row + r] : before[i]) << n;
  }
}

TEST_F(SymmetricProductCuda, MirrorOfTheLowerTriangle) {
  for (const Order order : {Order::forward, Order::backward, Order::shuffled}) {
    cuda_on_host::device.order = order;
    for (const int64_t n : {1, 2, 31, 32, 33, 100}) {
      check_mirror<uint16_t>(2, n);
      check_mirror<uint32_t>(1, n);
      check_mirror<uint64_t>(3, n);
    }
  }
  EXPECT_EQ(mirror_lower(nullptr, 1, 4, 4, 16, 3, nullptr), cudaErrorInvalidValue);
}

}  // namespace
