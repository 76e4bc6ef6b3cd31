// The CPU kernels around the polar iteration, against the formulas in plain loops.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu/polar_update.h"
#include "polar_update_oracle.h"

namespace {

using namespace erlangen::testing;
namespace cpu = erlangen::kernels::cpu;

// All passes before the iteration, and the one after it; blocks in any order.
void prepare(PolarProblem* problem, unsigned order = 0) {
  const PolarUpdateOptions o = problem->call();
  const int64_t blocks = cpu::polar_blocks(o);
  std::vector<int64_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), 0);
  if (order) std::shuffle(sequence.begin(), sequence.end(), std::mt19937(order));
  for (const PolarTensor& tensor : problem->tensors()) {
    for (int64_t k = 0; k < o.matrices; ++k) {
      int32_t key = 0;
      for (const int64_t b : sequence) {
        key = std::max(key, cpu::polar_update_momentum(tensor, o, cpu::polar_block(o, k, b)));
      }
      std::vector<double> partial(blocks);
      for (const int64_t b : sequence) {
        partial[b] = cpu::polar_update_cast(tensor, o, cpu::polar_block(o, k, b), key);
      }
      const double squares = std::accumulate(partial.begin(), partial.end(), 0.0);
      const int64_t half = problem->k() / 2;
      cpu::polar_update_normalise(tensor, o, k, half, problem->k(), key, squares);
      cpu::polar_update_normalise(tensor, o, k, 0, half, key, squares);
    }
  }
}

void finish(PolarProblem* problem) {
  const PolarUpdateOptions o = problem->call();
  for (const PolarTensor& tensor : problem->tensors()) {
    for (int64_t k = 0; k < o.matrices; ++k) {
      for (int64_t b = 0; b < cpu::polar_blocks(o); ++b) {
        cpu::polar_update_parameter(tensor, o, cpu::polar_block(o, k, b));
      }
    }
  }
}

// Half of what 4096 summands and a strip in 32 lanes, of which short rows use few, may lose; the
// lanes are folded in five steps, and what few folds there are is added up.
double norm_error(const PolarUpdateOptions& o) {
  const double u = std::ldexp(1, o.dtype == DType::float64 ? -53 : -24);
  const int64_t strip = std::min<int64_t>(o.cols / o.segments, o.transposed ? 64 : 1024);
  const int64_t summands = std::min<int64_t>(o.rows * o.cols, 4096 + strip);
  return (static_cast<double>(summands) / std::min<int64_t>(strip, 32) + 16) / 2 * u;
}

// Blocks are 64 rows by 4096 columns, strips 1024 columns, tiles 64 by 64.
const std::vector<PolarShape> kShapes = {{1, 1, 1},   {2, 3, 4},    {1, 64, 64},  {3, 65, 66},
                                         {1, 130, 7}, {1, 5, 1030}, {1, 2, 4200}, {2, 1, 40},
                                         {2, 40, 2},  {1, 66, 100}};

PolarProblem problem_for(const PolarShape& shape, const PolarTypes& types, unsigned seed) {
  PolarUpdateOptions options = polar_options(shape, types, seed);
  options.element_offset = seed % 7;
  PolarProblem problem(2, options, seed % 4, seed % 3, seed % 2 ? 8 : 1);
  problem.draw(seed);
  return problem;
}

TEST(PolarUpdate, MatchesPlainLoops) {
  unsigned seed = 0;
  for (const PolarTypes& types : polar_types()) {
    for (const PolarShape& shape : kShapes) {
      for (int i = 0; i < 3; ++i) {
        seed += 5;  // so that over the shapes and types all flags meet
        SCOPED_TRACE(testing::Message()
                     << "types " << static_cast<int>(types.dtype) << " "
                     << static_cast<int>(types.momentum_dtype) << " "
                     << static_cast<int>(types.product_dtype) << " rows " << shape.rows << " cols "
                     << shape.cols << " seed " << seed);
        PolarProblem problem = problem_for(shape, types, seed);
        PolarProblem before = problem;
        prepare(&problem);
        check_prepared(before, problem, norm_error(problem.options));
        if (HasFatalFailure()) return;
        problem.draw_x(seed);
        before = problem;
        finish(&problem);
        check_finished(before, problem);
        if (HasFailure()) return;
      }
    }
  }
}

TEST(PolarUpdate, OnlyTheComputeTypeIsUnscaled) {
  for (const PolarTypes& types : polar_types()) {
    PolarUpdateOptions options = polar_options(1, 3, 4, types);
    EXPECT_TRUE(erlangen::kernels::polar_update_supports(options));
    options.unscaled = true;
    const DType compute = types.dtype == DType::float64 ? DType::float64 : DType::float32;
    EXPECT_EQ(erlangen::kernels::polar_update_supports(options), types.product_dtype == compute);
  }
}

TEST(PolarUpdate, TheOrderOfBlocksDoesNotMatter) {
  for (const bool transposed : {false, true}) {
    PolarUpdateOptions options =
        polar_options(1, 200, 5000, {DType::float32, DType::float32, DType::bfloat16});
    options.transposed = transposed;
    options.nesterov = transposed;
    PolarProblem problem(1, options);
    ASSERT_GT(cpu::polar_blocks(problem.options), 4);
    problem.draw(1, 1);
    PolarProblem shuffled = problem;
    prepare(&problem);
    prepare(&shuffled, 3);
    EXPECT_EQ(problem.storage, shuffled.storage);
    EXPECT_EQ(problem.parameters[0].momentum.bytes, shuffled.parameters[0].momentum.bytes);
  }
}

// A matrix gives the same bits wherever it stands in the batch, and under powers of two and another
// sign.
TEST(PolarUpdate, MatricesDoNotSeeEachOther) {
  for (const PolarTypes& types : polar_types()) {
    PolarUpdateOptions options = polar_options(2, 20, 70, types);
    options.nesterov = true;
    PolarProblem problem(3, options);
    problem.draw(1, 1);
    PolarProblem moved = problem;
    const double power = types.dtype == DType::float16 ? 0x1p-6 : 0x1p-60;
    problem.each([&](int64_t i, int64_t k, int64_t r, int64_t c) {
      // Normal numbers, so that no power of two rounds them.
      PolarParameter& from = problem.parameters[i];
      PolarParameter& to = moved.parameters[(i + 1) % 3];
      const int64_t row = k * 20 + r, other = (1 - k) * 20 + r;
      const double g = from.grad.get(row, c);
      if (std::fabs(g) < 0x1p-4) from.grad.set(row, c, std::copysign(0x1p-4, g));
      from.momentum.set(row, c, 0);
      to.grad.set(other, c, -power * from.grad.get(row, c));
      to.momentum.set(other, c, 0);
    });
    prepare(&problem);
    prepare(&moved);
    problem.each([&](int64_t i, int64_t k, int64_t r, int64_t c) {
      ASSERT_EQ(moved.x((i + 1) % 3 * 2 + 1 - k, r, c), -problem.x(i * 2 + k, r, c));
    });
  }
}

TEST(PolarUpdate, ZeroStaysZeroAndNaNSpreads) {
  for (const PolarTypes& types : polar_types()) {
    PolarProblem problem(1, polar_options(3, 4, 6, types));
    problem.draw(1, 1);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 6; ++c) {
        problem.parameters[0].grad.set(r, c, 0);
        problem.parameters[0].momentum.set(r, c, 0);
      }
    }
    // The quiet NaN that all storage types have in common.
    problem.parameters[0].momentum.set(4 + 1, 2, 0);
    char* bits = problem.parameters[0].momentum.data() +
                 problem.parameters[0].momentum.index(5, 2) * format(types.momentum_dtype).bytes;
    std::memset(bits, 0xff, format(types.momentum_dtype).bytes);
    prepare(&problem);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 6; ++c) {
        EXPECT_EQ(problem.x(0, r, c), 0);
        EXPECT_TRUE(std::isnan(problem.x(1, r, c)));
        EXPECT_FALSE(std::isnan(problem.x(2, r, c)));
      }
    }
  }
}

TEST(PolarUpdate, ReadsItsScalarsAtRunTime) {
  PolarUpdateOptions options =
      polar_options(1, 9, 20, {DType::bfloat16, DType::float32, DType::float32});
  options.stochastic_rounding = true;
  PolarProblem expected(1, options);
  expected.draw(1, 1);
  expected.draw_x(2);
  PolarProblem problem = expected;
  expected.lr = 0.125, expected.weight_decay = 0.5f, expected.step = 11;
  finish(&expected);
  const float lr = 0.125f, weight_decay = 0.5f, step = 11;
  PolarTensor tensor = problem.tensor(0);
  tensor.lr_pointer = &lr, tensor.weight_decay_pointer = &weight_decay, tensor.step_pointer = &step;
  const PolarUpdateOptions o = problem.call();
  cpu::polar_update_parameter(tensor, o, cpu::polar_block(o, 0, 0));
  EXPECT_EQ(problem.parameters[0].param.bytes, expected.parameters[0].param.bytes);
}

TEST(PolarUpdate, DividesByTheGradientScale) {
  const float scale = 1024;
  PolarProblem problem(1,
                       polar_options(1, 9, 20, {DType::float32, DType::float32, DType::float32}));
  problem.draw(1, 1);
  PolarProblem expected = problem;
  problem.each([&](int64_t, int64_t, int64_t r, int64_t c) {
    Buffer& grad = expected.parameters[0].grad;
    grad.set(r, c, grad.get(r, c) / scale);
  });
  problem.options.grad_scale = &scale;
  prepare(&problem);
  prepare(&expected);
  EXPECT_EQ(problem.storage, expected.storage);
  EXPECT_EQ(problem.parameters[0].momentum.bytes, expected.parameters[0].momentum.bytes);
}

TEST(PolarUpdate, OverflowChangesNothing) {
  for (const float found : {0.0f, 1.0f}) {
    PolarProblem problem(
        1, polar_options(1, 9, 20, {DType::float32, DType::bfloat16, DType::float32}));
    problem.draw(1, 1);
    const PolarProblem before = problem;
    problem.options.found_inf = &found;
    prepare(&problem);
    EXPECT_EQ(problem.parameters[0].momentum.bytes == before.parameters[0].momentum.bytes,
              found != 0);
    problem.draw_x(1);
    finish(&problem);
    EXPECT_EQ(problem.parameters[0].param.bytes == before.parameters[0].param.bytes, found != 0);
  }
}

}  // namespace
