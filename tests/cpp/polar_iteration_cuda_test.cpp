// The CUDA kernel of the polar iteration of small matrices, run on the host: to the bit against
// plain loops that round as it does, and against exact arithmetic.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "cuda_on_host.h"
#include "half_matrices.h"
#include "kernels/cuda/polar_iteration.cuh"
#include "polar_iteration_oracle.h"

namespace {

using namespace erlangen::testing;
using cuda_on_host::Device;
using cuda_on_host::Order;
using erlangen::kernels::cuda::polar_iteration;
using erlangen::kernels::cuda::polar_iteration_supports;
using erlangen::kernels::cuda::PolarIteration;

constexpr DType kDTypes[] = {DType::bfloat16, DType::float16};

PolarIteration arguments(Matrices& x, const Steps& steps, int period) {
  PolarIteration p = {};
  p.x = x.data();
  p.batch = x.batch, p.k = x.rows, p.l = x.cols;
  p.row = x.row, p.matrix = x.matrix;
  p.dtype = x.dtype;
  p.steps = static_cast<int>(steps.size());
  p.period = period;
  for (size_t i = 0; i < steps.size(); ++i) {
    p.a[i] = static_cast<float>(steps[i][0]);
    p.b[i] = static_cast<float>(steps[i][1]);
    p.c[i] = static_cast<float>(steps[i][2]);
  }
  return p;
}

void run(Matrices& x, const Steps& steps, int period = 2) {
  ASSERT_EQ(polar_iteration(arguments(x, steps, period), nullptr), cudaSuccess)
      << cuda_on_host::take_failure();
}

Dense dense(Matrices& x, int64_t matrix) {
  Dense result;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) result.push_back(x.get(matrix, r, c));
  }
  return result;
}

// Each of norm 1.
Matrices draw(DType dtype, int64_t batch, int64_t k, int64_t l, unsigned seed,
              int64_t padding = 0) {
  Matrices x(dtype, batch, k, l, padding);
  std::mt19937 generator(seed);
  for (int64_t m = 0; m < batch; ++m) {
    const Dense unit = unit_matrix(dtype, k, l, generator);
    for (int64_t i = 0; i < k * l; ++i) x.set(m, i / l, i % l, unit[i]);
  }
  return x;
}

void expect_same_bits(Matrices& a, Matrices& b) {
  for (int64_t i = 0; i < a.batch * a.matrix; ++i) ASSERT_EQ(a.data()[i], b.data()[i]) << i;
}

class PolarIterationCuda : public testing::Test {
 protected:
  void SetUp() override {
    cuda_on_host::device = {};
    cuda_on_host::launches.clear();
  }
};

struct Size {
  int64_t batch, k, l;
};
// Both paddings of k and their tails; more rows than columns; fewer stages of columns than the ring
// has, as many, and more.
const std::vector<Size> kSizes = {{1, 1, 1},   {2, 1, 40},    {3, 7, 9},     {2, 16, 8},
                                  {2, 33, 70}, {1, 64, 128},  {1, 64, 520},  {2, 65, 31},
                                  {1, 50, 1},  {1, 100, 170}, {1, 128, 100}, {1, 128, 64}};

// Against the oracle that rounds the same, all bits; against exact arithmetic, rounding's size.
void check(DType dtype, const Size& size, const NamedSteps& set, int period, unsigned seed) {
  SCOPED_TRACE(testing::Message() << set.name << " dtype " << static_cast<int>(dtype) << " k "
                                  << size.k << " l " << size.l << " period " << period);
  Matrices x = draw(dtype, size.batch, size.k, size.l, seed, seed % 2 * 8);
  Matrices before = x;
  cuda_on_host::launches.clear();
  run(x, set.steps, period);
  if (testing::Test::HasFatalFailure()) return;
  ASSERT_EQ(cuda_on_host::launches.size(), 1u);
  EXPECT_EQ(cuda_on_host::launches[0].grid.x, static_cast<unsigned>(size.batch));
  x.expect_gaps_untouched();
  for (int64_t m = 0; m < size.batch; ++m) {
    using Arithmetic = PolarOracle::Arithmetic;
    const Dense start = dense(before, m), found = dense(x, m);
    const Dense same =
        PolarOracle(dtype, Arithmetic::kernel, size.k, size.l).run(start, set.steps, period);
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(found[i], same[i])
          << "matrix " << m << " row " << i / size.l << " column " << i % size.l;
    }
    if (m > 0) continue;
    const Dense exact =
        PolarOracle(dtype, Arithmetic::exact, size.k, size.l).run(start, set.steps, period);
    const double bound = polar_rounding(dtype, start, size.k, size.l, set.steps, period, exact);
    EXPECT_LE(frobenius(found, exact), bound);
    EXPECT_LT(bound, frobenius(exact, Dense(exact.size())));  // or zeros would pass
  }
}

TEST_F(PolarIterationCuda, EverySizeAndBothForms) {
  unsigned seed = 0;
  for (const Size& size : kSizes) {
    for (const DType dtype : kDTypes) {
      ++seed;
      cuda_on_host::device.sms = seed % 4 < 2 ? 0 : 4;  // X streams, or stays in shared memory
      check(dtype, size, all_coefficient_sets()[0], seed % 3 == 0 ? 1 : 2, seed);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(PolarIterationCuda, EveryCoefficientSet) {
  unsigned seed = 100;
  for (const NamedSteps& set : all_coefficient_sets()) {
    for (const DType dtype : kDTypes) {
      for (const int period : {1, 2}) check(dtype, {2, 20, 45}, set, period, ++seed);
      check(dtype, {1, 70, 150}, set, 2, ++seed);
      if (HasFatalFailure()) return;
    }
  }
}

// More matrices than multiprocessors: X comes through the ring once a pass, in memory that every
// GPU has. Else it stays in shared memory, if it fits.
TEST_F(PolarIterationCuda, WhereXStaysDoesNotMatter) {
  const Steps& steps = all_coefficient_sets()[0].steps;
  for (const Size& size : {Size{2, 40, 530}, Size{2, 90, 200}, Size{2, 64, 1600}}) {
    Matrices streamed = draw(DType::float16, size.batch, size.k, size.l, 1), resident = streamed;
    cuda_on_host::device.sms = 1;
    run(streamed, steps);
    cuda_on_host::device.sms = 2;
    run(resident, steps);
    if (HasFatalFailure()) return;
    expect_same_bits(streamed, resident);
    EXPECT_LE(cuda_on_host::launches[0].shared_bytes, 99u * 1024);
    EXPECT_EQ(cuda_on_host::launches[1].shared_bytes > cuda_on_host::launches[0].shared_bytes,
              size.l < 1600);
    cuda_on_host::launches.clear();
  }
}

TEST_F(PolarIterationCuda, OrderOfThreadsDoesNotMatter) {
  const Device devices[] = {{1, 1, 80, Order::backward, 0},
                            {3, 2, 80, Order::shuffled, 1},
                            {132, 4, 90, Order::shuffled, 2}};
  const Steps& steps = all_coefficient_sets()[0].steps;
  for (const Size& size : {Size{2, 40, 530}, Size{1, 90, 200}}) {
    Matrices start = draw(DType::float16, size.batch, size.k, size.l, 1);
    cuda_on_host::device = {};
    Matrices expected = start;
    run(expected, steps);
    for (const Device& device : devices) {
      cuda_on_host::device = device;
      Matrices x = start;
      run(x, steps);
      if (HasFatalFailure()) return;
      expect_same_bits(x, expected);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(PolarIterationCuda, OthersInTheBatchDoNotMatter) {
  const Steps& steps = all_coefficient_sets()[2].steps;
  Matrices together = draw(DType::bfloat16, 3, 24, 100, 1), alone = together;
  for (int64_t i = 0; i < together.matrix; ++i) together.data()[i] = Matrices::kNaN;
  run(together, steps);
  PolarIteration p = arguments(alone, steps, 2);
  p.batch = 1;
  for (int64_t m = 1; m < 3; ++m) {
    p.x = alone.data() + m * alone.matrix;
    ASSERT_EQ(polar_iteration(p, nullptr), cudaSuccess);
    for (int64_t i = m * alone.matrix; i < (m + 1) * alone.matrix; ++i) {
      ASSERT_EQ(alone.data()[i], together.data()[i]);
    }
  }
}

TEST_F(PolarIterationCuda, Signs) {
  const auto sign = [](int64_t r) { return r * 7 % 3 == 1 ? -1.0 : 1.0; };
  for (const int period : {1, 2}) {
    for (const Size& size : {Size{1, 30, 140}, Size{1, 97, 80}}) {
      Matrices x = draw(DType::float16, 1, size.k, size.l, 7), flipped = x;
      for (int64_t r = 0; r < size.k; ++r) {
        for (int64_t c = 0; c < size.l; ++c) {
          flipped.set(0, r, c, sign(r) * sign(c) * x.get(0, r, c));
        }
      }
      run(x, all_coefficient_sets()[0].steps, period);
      run(flipped, all_coefficient_sets()[0].steps, period);
      if (HasFatalFailure()) return;
      for (int64_t r = 0; r < size.k; ++r) {
        for (int64_t c = 0; c < size.l; ++c) {
          ASSERT_EQ(flipped.get(0, r, c), sign(r) * sign(c) * x.get(0, r, c));
        }
      }
    }
  }
}

// Zero rows and columns, which a row norm to follow would otherwise make visible, stay zero too.
TEST_F(PolarIterationCuda, ZerosStayZero) {
  for (const DType dtype : kDTypes) {
    Matrices x = draw(dtype, 2, 70, 90, 3);
    for (int64_t c = 0; c < 90; ++c) {
      for (int64_t r = 0; r < 70; ++r) x.set(0, r, c, 0);
      x.set(1, 11, c, 0);
    }
    for (int64_t r = 0; r < 70; ++r) x.set(1, r, 13, 0);
    run(x, all_coefficient_sets()[0].steps);
    for (int64_t r = 0; r < 70; ++r) {
      for (int64_t c = 0; c < 90; ++c) {
        ASSERT_EQ(x.get(0, r, c), 0);
        if (r == 11 || c == 13) {
          ASSERT_EQ(x.get(1, r, c), 0);
        }
      }
    }
  }
}

TEST_F(PolarIterationCuda, NotANumberFillsItsMatrix) {
  for (const int64_t k : {20, 80}) {
    Matrices x = draw(DType::float16, 3, k, 150, 5);
    x.set(1, k - 1, 149, NAN);
    run(x, all_coefficient_sets()[0].steps);
    for (int64_t m = 0; m < 3; ++m) {
      for (const double v : dense(x, m)) ASSERT_EQ(std::isnan(v), m == 1);
    }
  }
}

TEST_F(PolarIterationCuda, RefusesWhatItCannotTake) {
  Matrices x = draw(DType::float16, 2, 20, 24, 1), before = x;
  const PolarIteration good = arguments(x, all_coefficient_sets()[0].steps, 2);
  ASSERT_TRUE(polar_iteration_supports(good));
  const auto refused = [&](auto&& change) {
    PolarIteration p = good;
    change(&p);
    EXPECT_FALSE(polar_iteration_supports(p));
    EXPECT_EQ(polar_iteration(p, nullptr), cudaErrorInvalidValue);
  };
  refused([](PolarIteration* p) { p->dtype = DType::float32; });
  refused([](PolarIteration* p) { p->k = 129; });
  refused([](PolarIteration* p) { p->steps = 65; });
  refused([](PolarIteration* p) { p->period = 3; });
  refused([](PolarIteration* p) { p->row += 1; });
  refused([](PolarIteration* p) { p->matrix += 4; });
  refused([](PolarIteration* p) { p->x = static_cast<uint16_t*>(p->x) + 4; });
  for (int64_t PolarIteration::*none : {&PolarIteration::batch, &PolarIteration::l}) {
    PolarIteration nothing = good;
    nothing.*none = 0;
    EXPECT_EQ(polar_iteration(nothing, nullptr), cudaSuccess);
  }
  PolarIteration no_steps = good;
  no_steps.steps = 0;
  EXPECT_EQ(polar_iteration(no_steps, nullptr), cudaSuccess);
  EXPECT_TRUE(cuda_on_host::launches.empty());
  expect_same_bits(x, before);
}

}  // namespace
