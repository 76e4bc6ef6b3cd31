// The CUDA column-norm kernels, run on the host, against the oracle in double and the CPU kernel.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <set>
#include <vector>

#include "column_norm_oracle.h"
#include "cuda_on_host.h"
#include "kernels/cpu/column_norm.h"
#include "kernels/cuda/column_norm.cuh"
#include "kernels/cuda/column_norm_tiles.h"

namespace {

using namespace erlangen::testing;
using cuda_on_host::Device;
using cuda_on_host::Order;
namespace cpu = erlangen::kernels::cpu;
namespace cuda = erlangen::kernels::cuda;

// A thread's rows, the warps of a block, a warp's chunks, and the warps once more; each sum is
// rescaled, exactly.
constexpr int kSummands = 8 + 8 + 2 * 8 + 16;

class ColumnNormCuda : public testing::Test {
 protected:
  void SetUp() override {
    cuda_on_host::device = {};
    cuda_on_host::launches.clear();
  }
};

// With memory full of NaN for scratch, which must end where it was said to.
void step(const std::vector<ColumnNormTensor>& tensors, const ColumnNormOptions& options) {
  constexpr int kGuard = 64;
  const int64_t count = static_cast<int64_t>(tensors.size());
  const int64_t bytes = cuda::column_norm_scratch_bytes(tensors.data(), count, options);
  std::vector<double> memory((bytes + kGuard) / 8 + 1);
  char* scratch = reinterpret_cast<char*>(memory.data());
  std::memset(scratch, 0xff, bytes + kGuard);
  ASSERT_EQ(cuda::column_norm_step(tensors.data(), count, options, scratch, nullptr), cudaSuccess)
      << cuda_on_host::take_failure();
  const char* end = scratch + bytes;
  ASSERT_EQ(std::count(end, end + kGuard, static_cast<char>(0xff)), kGuard);
}
void step(ColumnProblem* problem) { step({problem->tensor()}, problem->options); }

void step_on_cpu(ColumnProblem* problem) {
  const ColumnNormTensor tensor = problem->tensor();
  const ColumnNormOptions& o = problem->options;
  std::vector<double> scratch(cpu::column_norm_scratch_bytes(tensor, o) / 8 + 1);
  for (int64_t k = 0; k < problem->matrices; ++k) {
    const cpu::ColumnNormBlock block = {k, 0, o.rows, 0, o.cols};
    cpu::column_norm_sum(tensor, o, block, scratch.data());
    cpu::column_norm_lengths(tensor, o, block, scratch.data());
    cpu::column_norm_update(tensor, o, block, scratch.data());
  }
}

// To a rounding to storage each, and the slack of two sums in different orders. Where rounding may
// turn a direction round, cautious decay may differ.
void check_against_cpu(ColumnProblem before, ColumnProblem after) {
  const ColumnNormOptions& o = before.options;
  step_on_cpu(&before);
  const double u = std::ldexp(1, o.dtype == DType::float64 ? -53 : -24);
  const double step = before.lr * before.factor;
  for (int64_t k = 0; k < before.matrices; ++k) {
    for (int64_t r = 0; r < o.rows; ++r) {
      for (int64_t c = 0; c < o.cols; ++c) {
        const double m = before.get(before.momentum, k, r, c);
        ASSERT_NEAR(after.get(after.momentum, k, r, c), m, 2.02 * before.momentum.rounding(m));
        const double p = before.get(before.param, k, r, c);
        if (!o.cautious) {
          ASSERT_NEAR(after.get(after.param, k, r, c), p,
                      2.02 * before.param.rounding(p) + 100 * u * (std::fabs(p) + step));
        }
      }
    }
  }
}

// Sizes that fill tiles and do not: rows of a chunk are 64, of a warp's stride 8; columns of a tile
// are 32 packs of 2 to 8, or 32.
struct Shape {
  int64_t matrices, rows, cols;
};
const std::vector<Shape> kShapes = {{1, 1, 8},    {2, 7, 8},   {1, 8, 24},  {1, 9, 16},
                                    {1, 63, 8},   {1, 64, 40}, {3, 65, 16}, {1, 130, 264},
                                    {1, 1200, 8}, {1, 3, 520}, {1, 40, 128}};

// Aligned, or neither aligned nor of a whole number of packs.
ColumnProblem problem_for(const Shape& shape, bool vectors, ColumnPairs pairs, const Types& types,
                          unsigned seed, double scale) {
  const int64_t cols = shape.cols - (vectors ? 0 : 2);
  ColumnProblem problem(shape.matrices, column_options(shape.rows, cols, pairs, types),
                        vectors ? 8 : 3, vectors ? 0 : 1);
  problem.draw(seed, scale);
  const std::vector<int64_t> unit = units_of(problem.options).back();
  for (const int64_t c : unit) {
    problem.clear_column(&problem.grad, 0, c);
    if (seed % 5 == 0) problem.clear_column(&problem.momentum, 0, c);
  }
  return problem;
}

TEST_F(ColumnNormCuda, MatchesOracle) {
  unsigned seed = 0;
  std::set<const void*> kernels;
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const Shape& shape : kShapes) {
      for (int flags = 0; flags < 16; ++flags) {
        for (const auto pairs :
             {ColumnPairs::none, ColumnPairs::interleaved, ColumnPairs::concatenated}) {
          if (++seed % 3 != 0) continue;  // a third of all, another for each shape
          const double scales[] = {narrow ? 1e-2 : 1e-30, 1, narrow ? 1e2 : 1e30};
          ColumnProblem problem =
              problem_for(shape, flags & 8, pairs, types, seed, scales[seed / 3 % 3]);
          problem.options.nesterov = flags & 1;
          problem.options.maximize = flags & 2;
          problem.options.cautious = flags & 4;
          SCOPED_TRACE(testing::Message()
                       << "dtype " << static_cast<int>(types.dtype) << " momentum "
                       << static_cast<int>(types.momentum_dtype) << " rows " << shape.rows
                       << " cols " << shape.cols << " pairs " << static_cast<int>(pairs)
                       << " flags " << flags << " seed " << seed);
          cuda_on_host::launches.clear();
          const ColumnProblem before = problem;
          step(&problem);
          if (HasFatalFailure()) return;
          ASSERT_EQ(cuda_on_host::launches.size(), 3u);
          for (const auto& launch : cuda_on_host::launches) kernels.insert(launch.kernel);
          check_against_oracle(before, problem, kSummands);
          if (HasFatalFailure()) return;
          check_against_cpu(before, problem);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
  // Two passes for each pair of types, with vectors and without, and where the first may store the
  // momentum (4 of 7) both for when it does and for when it does not; the lengths in two types.
  EXPECT_EQ(kernels.size(), 2u * 2 * (7 + 4) + 2);
}

TEST_F(ColumnNormCuda, OrderAndDeviceDoNotMatter) {
  const Device devices[] = {{1, 1, 80, Order::backward, 0},
                            {3, 2, 80, Order::shuffled, 1},
                            {132, 4, 80, Order::shuffled, 2},
                            {1, 2, 80, Order::shuffled, 3}};
  for (const Types& types : {kTypes[0], kTypes[2], kTypes[4]}) {
    for (const bool vectors : {true, false}) {
      for (const bool nesterov : {false, true}) {
        ColumnProblem start =
            problem_for({3, 200, 136}, vectors, ColumnPairs::concatenated, types, 7, 1);
        start.options.nesterov = nesterov;
        cuda_on_host::device = {};
        ColumnProblem expected = start;
        step(&expected);
        for (const Device& device : devices) {
          cuda_on_host::device = device;
          ColumnProblem problem = start;
          step(&problem);
          ASSERT_EQ(problem.param.bytes, expected.param.bytes);
          ASSERT_EQ(problem.momentum.bytes, expected.momentum.bytes);
        }
      }
    }
  }
}

// Aligned and unaligned tensors, stacks and empty ones, more than a table holds: each as if alone.
TEST_F(ColumnNormCuda, ManyTensorsInOneCall) {
  std::vector<ColumnProblem> together;
  size_t aligned = 0;
  size_t unaligned = 0;
  for (int i = 0; i < 100; ++i) {
    const bool offset = i % 3 == 1;
    ColumnProblem problem(i % 4, column_options(70, 24), offset ? 3 : 8, offset ? 1 : 0);
    problem.draw(100 + i, 1);
    problem.lr = 0.01 * i;
    problem.weight_decay = 0.001 * i;
    if (problem.matrices > 0) ++(offset ? unaligned : aligned);
    together.push_back(problem);
  }
  std::vector<ColumnProblem> alone = together;
  std::vector<ColumnNormTensor> tensors;
  for (ColumnProblem& problem : together) tensors.push_back(problem.tensor());
  step(tensors, together[0].options);
  const auto calls = [](size_t count) {
    return (count + cuda::kStacksPerLaunch - 1) / cuda::kStacksPerLaunch;
  };
  EXPECT_EQ(cuda_on_host::launches.size(), 3 * (calls(aligned) + calls(unaligned)));
  for (size_t i = 0; i < alone.size(); ++i) {
    if (alone[i].matrices == 0) continue;
    const ColumnProblem before = alone[i];
    step(&alone[i]);
    check_against_oracle(before, alone[i], kSummands, before.lr);
    ASSERT_EQ(alone[i].param.bytes, together[i].param.bytes) << i;
    ASSERT_EQ(alone[i].momentum.bytes, together[i].momentum.bytes) << i;
  }
}

TEST_F(ColumnNormCuda, NotANumberStaysInItsUnit) {
  for (const bool vectors : {true, false}) {
    for (const float bad : {NAN, INFINITY}) {
      for (const bool all : {false, true}) {
        ColumnProblem problem =
            problem_for({2, 140, 24}, vectors, ColumnPairs::concatenated, kTypes[0], 1, 1);
        const int64_t cols = problem.options.cols;
        for (int64_t r = all ? 0 : 70; r < (all ? 140 : 71); ++r) {
          problem.set(&problem.grad, 1, r, 5, bad);
        }
        step(&problem);
        EXPECT_TRUE(std::isnan(problem.get(problem.param, 1, 70, 5)));
        for (int64_t r = 0; r < 140; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            ASSERT_TRUE(std::isfinite(problem.get(problem.param, 0, r, c)));
            const bool hit = c == 5 || c == 5 + cols / 2;
            ASSERT_TRUE(hit || std::isfinite(problem.get(problem.param, 1, r, c)));
          }
        }
      }
    }
  }
}

TEST_F(ColumnNormCuda, ScaleOfTheGradientDoesNotMatter) {
  for (const bool vectors : {true, false}) {
    for (const int exponent : {-90, -1, 3, 90}) {
      ColumnProblem problem =
          problem_for({1, 200, 40}, vectors, ColumnPairs::interleaved, kTypes[0], 5, 1);
      ColumnProblem scaled = problem;
      for (int64_t r = 0; r < 200; ++r) {
        for (int64_t c = 0; c < problem.options.cols; ++c) {
          scaled.grad.set(r, c, std::ldexp(problem.grad.get(r, c), exponent));
          scaled.momentum.set(r, c, std::ldexp(problem.momentum.get(r, c), exponent));
        }
      }
      step(&problem);
      step(&scaled);
      ASSERT_EQ(problem.param.bytes, scaled.param.bytes) << "2^" << exponent;
    }
  }
}

// The scale that holds for a column grows from row to row, from warp to warp, chunk to chunk.
TEST_F(ColumnNormCuda, GrowingAndShrinkingColumns) {
  for (const int direction : {-1, 1}) {
    ColumnProblem problem(1, column_options(1100, 8));
    problem.options.momentum = 0;
    problem.draw(6, 1);
    for (int64_t r = 0; r < 1100; ++r) {
      for (int64_t c = 0; c < 8; ++c) {
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

TEST_F(ColumnNormCuda, PointersAreRead) {
  const float lr = 0.125f, weight_decay = 0.3f;
  for (const float scale : {8.0f, 3.0f}) {
    for (const float found : {0.0f, 1.0f}) {
      for (const bool nesterov : {false, true}) {
        ColumnProblem problem = problem_for({1, 70, 16}, true, ColumnPairs::none, kTypes[0], 4, 1);
        problem.options.nesterov = nesterov;
        problem.options.grad_scale = &scale;
        problem.options.found_inf = &found;
        ColumnNormTensor tensor = problem.tensor();
        tensor.lr_pointer = &lr;
        tensor.weight_decay_pointer = &weight_decay;
        ColumnProblem before = problem;
        step({tensor}, problem.options);
        if (found == 0) {
          before.weight_decay = weight_decay;
          check_against_oracle(before, problem, kSummands, lr, scale);
        } else {
          EXPECT_EQ(problem.param.bytes, before.param.bytes);
          EXPECT_EQ(problem.momentum.bytes, before.momentum.bytes);
        }
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(ColumnNormCuda, NothingToDo) {
  ColumnProblem empty(0, column_options(8, 64));
  step(&empty);
  EXPECT_TRUE(cuda_on_host::launches.empty());
  ColumnProblem odd(1, column_options(4, 7, ColumnPairs::interleaved));
  const ColumnNormTensor tensor = odd.tensor();
  EXPECT_EQ(cuda::column_norm_step(&tensor, 1, odd.options, nullptr, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
