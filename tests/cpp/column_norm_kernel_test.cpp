// The column-norm kernel on the CPU, without torch, against an oracle in double.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "column_norm_oracle.h"
#include "kernels/cpu/column_norm.h"

namespace {

using namespace erlangen::testing;
namespace cpu = erlangen::kernels::cpu;

// 16 squares of a block, the blocks of a chunk, and the chunks in double.
constexpr int kSummands = 16 + 512 / 16 + 4;

// Memory full of NaN, and not one byte more than was asked for.
std::vector<double> scratch_for(const ColumnNormTensor& tensor, const ColumnNormOptions& options) {
  const int64_t bytes = cpu::column_norm_scratch_bytes(tensor, options);
  return std::vector<double>((bytes + 7) / 8, NAN);
}

// In blocks of at most this many chunks of rows and this many columns.
void step(const ColumnNormTensor& tensor, const ColumnNormOptions& options, int64_t chunks = 1000,
          int64_t cols = 1000000) {
  std::vector<double> scratch = scratch_for(tensor, options);
  const int64_t rows = chunks * cpu::kColumnNormChunkRows;
  const auto each_block = [&](auto&& f) {
    for (int64_t k = 0; k < tensor.matrices; ++k) {
      for (int64_t c = 0; c < options.cols; c += cols) {
        for (int64_t r = 0; r < options.rows; r += rows) {
          f(cpu::ColumnNormBlock{k, r, std::min(r + rows, options.rows), c,
                                 std::min(c + cols, options.cols)});
        }
      }
    }
  };
  each_block([&](const auto& b) { cpu::column_norm_sum(tensor, options, b, scratch.data()); });
  each_block([&](const auto& b) {
    if (b.row_begin == 0) cpu::column_norm_lengths(tensor, options, b, scratch.data());
  });
  each_block([&](const auto& b) { cpu::column_norm_update(tensor, options, b, scratch.data()); });
}
void step(ColumnProblem* problem) { step(problem->tensor(), problem->options); }

struct Shape {
  int64_t rows, cols;
};

TEST(ColumnNormKernel, MatchesOracle) {
  unsigned seed = 0;
  const Shape shapes[] = {{1, 1},  {1, 2},   {7, 2},     {3, 64},   {16, 33},  {17, 66},
                          {33, 5}, {100, 8}, {511, 3},   {512, 4},  {513, 6},  {1200, 2},
                          {2, 70}, {5, 130}, {18, 1026}, {3, 2050}, {40, 100}, {65, 12}};
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const Shape& shape : shapes) {
      for (const auto pairs :
           {ColumnPairs::none, ColumnPairs::interleaved, ColumnPairs::concatenated}) {
        if (pairs != ColumnPairs::none && shape.cols % 2) continue;
        for (int flags = 0; flags < 8; ++flags) {
          const double scales[] = {narrow ? 1e-2 : 1e-30, 1, narrow ? 1e2 : 1e30};
          ++seed;
          ColumnNormOptions options = column_options(shape.rows, shape.cols, pairs, types);
          options.nesterov = flags & 1;
          options.maximize = flags & 2;
          options.cautious = flags & 4;
          const bool strided = seed % 2;
          ColumnProblem problem(shape.rows * shape.cols < 300 ? 3 : 1, options, strided ? 3 : 0,
                                strided ? 1 : 0);
          problem.draw(seed, scales[seed % 3]);
          // A unit without gradient, or of zeros.
          const std::vector<int64_t> unit = units_of(options).back();
          for (const int64_t c : unit) {
            problem.clear_column(&problem.grad, 0, c);
            if (seed % 5 == 0) problem.clear_column(&problem.momentum, 0, c);
          }
          SCOPED_TRACE(testing::Message()
                       << "dtype " << static_cast<int>(types.dtype) << " momentum "
                       << static_cast<int>(types.momentum_dtype) << " rows " << shape.rows
                       << " cols " << shape.cols << " pairs " << static_cast<int>(pairs)
                       << " flags " << flags << " seed " << seed);
          const ColumnProblem before = problem;
          step(&problem);
          check_against_oracle(before, problem, kSummands);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(ColumnNormKernel, ZeroStepLeavesParameters) {
  ColumnProblem problem(2, column_options(40, 30));
  problem.draw(1, 1);
  problem.lr = 0;
  const ColumnProblem before = problem;
  step(&problem);
  EXPECT_EQ(problem.param.bytes, before.param.bytes);
  EXPECT_NE(problem.momentum.bytes, before.momentum.bytes);
}

TEST(ColumnNormKernel, NotANumberStaysInItsUnit) {
  for (const auto pairs :
       {ColumnPairs::none, ColumnPairs::interleaved, ColumnPairs::concatenated}) {
    for (const float bad : {NAN, INFINITY}) {
      for (const bool all : {false, true}) {
        ColumnProblem problem(2, column_options(600, 20, pairs));
        problem.draw(1, 1);
        for (int64_t r = all ? 0 : 50; r < (all ? 600 : 51); ++r) {
          problem.set(&problem.grad, 1, r, 7, bad);
        }
        step(&problem);
        EXPECT_TRUE(std::isnan(problem.get(problem.param, 1, 50, 7)));
        const std::vector<std::vector<int64_t>> units = units_of(problem.options);
        for (const auto& unit : units) {
          const bool hit = std::find(unit.begin(), unit.end(), 7) != unit.end();
          for (const int64_t c : unit) {
            for (int64_t r = 0; r < 600; ++r) {
              ASSERT_TRUE(std::isfinite(problem.get(problem.param, 0, r, c)));
              ASSERT_TRUE(hit || std::isfinite(problem.get(problem.param, 1, r, c)));
            }
          }
        }
      }
    }
  }
}

// ---- What may stand elsewhere: learning rate, decay, the gradient's scale, whether it overflowed

TEST(ColumnNormKernel, PointersAreRead) {
  const float lr = 0.125f, weight_decay = 0.3f;
  for (const float scale : {8.0f, 3.0f}) {
    for (const float found : {0.0f, 1.0f}) {
      ColumnProblem problem(1, column_options(70, 9));
      problem.draw(4, 1);
      problem.options.grad_scale = &scale;
      problem.options.found_inf = &found;
      ColumnNormTensor tensor = problem.tensor();
      tensor.lr_pointer = &lr;
      tensor.weight_decay_pointer = &weight_decay;
      ColumnProblem before = problem;
      step(tensor, problem.options);
      if (found == 0) {
        before.weight_decay = weight_decay;
        check_against_oracle(before, problem, kSummands, lr, scale);
      } else {
        EXPECT_EQ(problem.param.bytes, before.param.bytes);
        EXPECT_EQ(problem.momentum.bytes, before.momentum.bytes);
      }
    }
  }
}

// ---- To the bit

TEST(ColumnNormKernel, BlocksGiveTheSameBits) {
  for (const Types& types : kTypes) {
    for (const auto pairs : {ColumnPairs::none, ColumnPairs::interleaved}) {
      for (const bool nesterov : {false, true}) {
        ColumnProblem start(2, column_options(1100, 66, pairs, types), 5, 1);
        start.options.nesterov = nesterov;
        start.draw(3, 1);
        ColumnProblem whole = start;
        step(&whole);
        for (const Shape& block : {Shape{1, 1000}, Shape{2, 64}, Shape{1, 2}, Shape{3, 34}}) {
          ColumnProblem parts = start;
          step(parts.tensor(), parts.options, block.rows, block.cols);
          EXPECT_EQ(parts.param.bytes, whole.param.bytes);
          EXPECT_EQ(parts.momentum.bytes, whole.momentum.bytes);
        }
      }
    }
  }
}

TEST(ColumnNormKernel, ScaleOfTheGradientDoesNotMatter) {
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const int exponent : narrow ? std::vector<int>{-1, 3} : std::vector<int>{-90, -1, 3, 90}) {
      ColumnProblem problem(1, column_options(530, 33, ColumnPairs::none, types));
      problem.draw(5, 1);
      ColumnProblem scaled = problem;
      for (int64_t r = 0; r < 530; ++r) {
        for (int64_t c = 0; c < 33; ++c) {
          scaled.grad.set(r, c, std::ldexp(problem.grad.get(r, c), exponent));
          scaled.momentum.set(r, c, std::ldexp(problem.momentum.get(r, c), exponent));
        }
      }
      step(&problem);
      step(&scaled);
      EXPECT_EQ(problem.param.bytes, scaled.param.bytes) << "2^" << exponent;
    }
  }
}

// The scale that holds for a column grows from row to row, from block to block, chunk to chunk.
TEST(ColumnNormKernel, GrowingAndShrinkingColumns) {
  for (const int direction : {-1, 1}) {
    ColumnProblem problem(1, column_options(1100, 3));
    problem.options.momentum = 0;
    problem.draw(6, 1);
    for (int64_t r = 0; r < 1100; ++r) {
      for (int64_t c = 0; c < 3; ++c) {
        const double power = direction * (static_cast<double>(r) / 5 - 110);
        problem.grad.set(r, c, problem.grad.get(r, c) * std::exp2(power));
      }
    }
    const ColumnProblem before = problem;
    step(&problem);
    check_against_oracle(before, problem, kSummands);
    if (HasFatalFailure()) return;
  }
}

TEST(ColumnNormKernel, MaximizeIsTheNegatedGradient) {
  for (const bool nesterov : {false, true}) {
    ColumnProblem problem(1, column_options(33, 50));
    problem.options.nesterov = nesterov;
    problem.draw(5, 1);
    ColumnProblem negated = problem;
    for (int64_t r = 0; r < 33; ++r) {
      for (int64_t c = 0; c < 50; ++c) negated.grad.set(r, c, -problem.grad.get(r, c));
    }
    problem.options.maximize = true;
    step(&problem);
    step(&negated);
    EXPECT_EQ(problem.param.bytes, negated.param.bytes);
    EXPECT_EQ(problem.momentum.bytes, negated.momentum.bytes);
  }
}

}  // namespace
