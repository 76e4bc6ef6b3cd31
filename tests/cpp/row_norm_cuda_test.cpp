// The CUDA row-norm kernels, run on the host, against the oracle in double and the CPU kernel.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "cuda_on_host.h"
#include "kernels/cpu/row_norm.h"
#include "kernels/cuda/row_norm.cuh"
#include "kernels/cuda/row_norm_tiles.h"
#include "row_norm_oracle.h"

namespace {

using namespace erlangen::testing;
using cuda_on_host::Device;
using cuda_on_host::Order;
namespace cuda = erlangen::kernels::cuda;

class RowNormCuda : public testing::Test {
 protected:
  void SetUp() override {
    cuda_on_host::device = {};
    cuda_on_host::launches.clear();
  }
};

void step(const std::vector<RowNormTensor>& tensors, const RowNormOptions& options) {
  ASSERT_EQ(cuda::row_norm_step(tensors.data(), tensors.size(), options, nullptr), cudaSuccess)
      << cuda_on_host::take_failure();
}
void step(Problem* problem) { step({problem->tensor()}, problem->options); }

// The launcher's branches for a type: sizes of rows, and the threads of a block that takes them.
struct Branch {
  bool vectors;
  int64_t first, last;
  unsigned threads;
};

std::vector<Branch> branches(DType dtype) {
  const int64_t values = dtype == DType::float64 ? 16 : 32;  // 128 bytes of direction a thread
  return {{true, 8, 32 * values / 4, 128},
          {true, 32 * values / 4 + 8, 32 * values, 128},
          {true, 32 * values + 8, 128 * values, 128},
          {true, 128 * values + 8, 256 * values, 256},
          {true, 256 * values + 8, 512 * values, 512},
          {true, 512 * values + 8, 1024 * values, 512},
          {true, 1024 * values + 8, 1024 * values + 2056, 512},
          {false, 1, 32 * values, 128},
          {false, 32 * values + 1, 32 * values + 1029, 512}};
}

// A problem for the branch: rows of numbers, with zero gradient, of zeros.
Problem problem_for(const Branch& branch, const Types& types, int64_t cols, unsigned seed,
                    double scale) {
  Problem problem(4, make_options(cols, types.dtype, types.momentum_dtype), branch.vectors ? 8 : 3,
                  branch.vectors ? 0 : 1);
  problem.draw(seed, scale);
  problem.clear(&problem.grad, 1);
  problem.clear(&problem.grad, 3);
  problem.clear(&problem.momentum, 3);
  return problem;
}

// To a rounding each, and the difference of two orders of summation.
void check_against_cpu(Problem before, Problem problem) {
  erlangen::kernels::cpu::row_norm_step(before.tensor(), before.options, 0, before.rows);
  const double eps = before.options.dtype == DType::float64 ? 1e-13 : 1e-5;
  for (int64_t r = 0; r < before.rows; ++r) {
    for (int64_t c = 0; c < before.options.cols; ++c) {
      const double p = before.param.get(r, c);
      const double m = before.momentum.get(r, c);
      ASSERT_NEAR(problem.param.get(r, c), p, 2.02 * before.param.rounding(p) + eps * 0.25);
      ASSERT_NEAR(problem.momentum.get(r, c), m, 2.02 * before.momentum.rounding(m));
    }
  }
}

TEST_F(RowNormCuda, MatchesOracleOnEveryBranch) {
  unsigned seed = 0;
  int shape = 0;
  std::set<const void*> kernels;
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const Branch& branch : branches(types.dtype)) {
      for (const int64_t cols :
           {branch.first, (branch.first + branch.last) / 16 * 8, branch.last}) {
        // Long rows take long to check: one of the eight, another each time.
        const int every = cols > 2048 ? 8 : 1;
        for (int flags = ++shape % every; flags < 8; flags += every) {
          const double scales[] = {narrow ? 1e-2 : 1e-30, 1, narrow ? 1e2 : 1e30};
          ++seed;
          Problem problem = problem_for(branch, types, cols, seed, scales[seed % 3]);
          problem.options.nesterov = flags & 1;
          problem.options.maximize = flags & 2;
          problem.options.gradient_support = flags & 4;
          SCOPED_TRACE(testing::Message()
                       << "dtype " << static_cast<int>(types.dtype) << " momentum "
                       << static_cast<int>(types.momentum_dtype) << " cols " << cols << " vectors "
                       << branch.vectors << " flags " << flags << " seed " << seed);
          cuda_on_host::launches.clear();
          const Problem before = problem;
          step(&problem);
          if (HasFatalFailure()) return;
          ASSERT_EQ(cuda_on_host::launches.size(), 1u);
          ASSERT_EQ(cuda_on_host::launches[0].block.x, branch.threads);
          kernels.insert(cuda_on_host::launches[0].kernel);
          check_against_oracle(before, problem);
          if (HasFatalFailure()) return;
          check_against_cpu(before, problem);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
  EXPECT_EQ(kernels.size(), kTypes.size() * branches(DType::float32).size());
}

TEST_F(RowNormCuda, OrderAndDeviceDoNotMatter) {
  const Device devices[] = {{1, 1, 80, Order::backward, 0},
                            {3, 2, 80, Order::shuffled, 1},
                            {132, 4, 80, Order::shuffled, 2},
                            {1, 2, 80, Order::shuffled, 3}};
  for (const Types& types : {kTypes[0], kTypes[2], kTypes[4]}) {
    for (const Branch& branch : branches(types.dtype)) {
      Problem start = problem_for(branch, types, branch.last, 7, 1);
      start.options.gradient_support = true;
      cuda_on_host::device = {};
      Problem expected = start;
      step(&expected);
      for (const Device& device : devices) {
        cuda_on_host::device = device;
        Problem problem = start;
        step(&problem);
        ASSERT_EQ(problem.param.bytes, expected.param.bytes) << branch.last << " columns";
        ASSERT_EQ(problem.momentum.bytes, expected.momentum.bytes) << branch.last << " columns";
      }
    }
  }
}

// Aligned and unaligned tensors, empty ones, more than a table holds: each as if it were alone.
TEST_F(RowNormCuda, ManyTensorsInOneCall) {
  const int64_t cols = 264;
  std::vector<Problem> together;
  size_t aligned = 0;
  size_t unaligned = 0;
  for (int i = 0; i < 150; ++i) {
    const bool offset = i % 3 == 1;
    Problem problem(i % 7, make_options(cols), offset ? 3 : 8, offset ? 1 : 0);
    problem.draw(100 + i, 1);
    problem.decay = 1 - 0.001 * i;
    problem.step_size = 0.01 * i;
    if (problem.rows > 0) ++(offset ? unaligned : aligned);
    together.push_back(problem);
  }
  std::vector<Problem> alone = together;
  std::vector<RowNormTensor> tensors;
  for (Problem& problem : together) tensors.push_back(problem.tensor());
  step(tensors, together[0].options);
  const auto calls = [](size_t count) {
    return (count + cuda::kTensorsPerLaunch - 1) / cuda::kTensorsPerLaunch;
  };
  EXPECT_EQ(cuda_on_host::launches.size(), calls(aligned) + calls(unaligned));
  for (size_t i = 0; i < alone.size(); ++i) {
    if (alone[i].rows == 0) continue;
    const Problem before = alone[i];
    step(&alone[i]);
    check_against_oracle(before, alone[i]);
    ASSERT_EQ(alone[i].param.bytes, together[i].param.bytes) << i;
    ASSERT_EQ(alone[i].momentum.bytes, together[i].momentum.bytes) << i;
  }
}

TEST_F(RowNormCuda, NotANumberStaysInItsRow) {
  for (const Branch& branch : branches(DType::float32)) {
    for (const float bad : {NAN, INFINITY}) {
      for (const bool all : {false, true}) {
        const int64_t cols = branch.last;
        Problem problem = problem_for(branch, kTypes[0], cols, 1, 1);
        const int64_t middle = cols / 2;
        for (int64_t c = all ? 0 : middle; c < (all ? cols : middle + 1); ++c) {
          problem.grad.set(2, c, bad);
        }
        step(&problem);
        EXPECT_TRUE(std::isnan(problem.param.get(2, middle))) << cols << " columns";
        for (const int64_t row : {0, 1, 3}) {
          for (int64_t c = 0; c < cols; ++c) ASSERT_TRUE(std::isfinite(problem.param.get(row, c)));
        }
      }
    }
  }
}

TEST_F(RowNormCuda, ScaleOfTheGradientDoesNotMatter) {
  for (const Branch& branch : branches(DType::float32)) {
    for (const int exponent : {-90, -1, 3, 90}) {
      Problem problem = problem_for(branch, kTypes[0], branch.last, 5, 1);
      Problem scaled = problem;
      for (int64_t r = 0; r < problem.rows; ++r) {
        for (int64_t c = 0; c < branch.last; ++c) {
          scaled.grad.set(r, c, std::ldexp(problem.grad.get(r, c), exponent));
          scaled.momentum.set(r, c, std::ldexp(problem.momentum.get(r, c), exponent));
        }
      }
      step(&problem);
      step(&scaled);
      ASSERT_EQ(problem.param.bytes, scaled.param.bytes) << branch.last << " 2^" << exponent;
    }
  }
}

// ---- Rows in blocks and in two runs, cautious decay, stochastic rounding

// On each way that rows are read, with vectors and without.
TEST_F(RowNormCuda, BlocksAndSegmentsMatchOracle) {
  unsigned seed = 0;
  for (const Types& types : kTypes) {
    for (const Branch& branch : branches(types.dtype)) {
      // The kernels of long rows differ in nothing that matters here but the number of threads.
      if (branch.last > 4096 && branch.threads == 512 && types.dtype != DType::bfloat16) continue;
      for (const int64_t segments : {1, 2}) {
        const int64_t cols =
            branch.vectors ? branch.first / 16 * 16 + 16 : branch.first / 2 * 2 + 2;
        RowNormOptions options = make_options(cols, types.dtype, types.momentum_dtype);
        options.segments = segments;
        options.nesterov = seed & 1;
        options.gradient_support = seed & 2;
        options.cautious = seed & 4;
        options.stochastic_rounding = seed & 8;
        const int64_t inner = seed % 2 ? 3 : 2;
        Problem problem(6, options, branch.vectors ? 8 : 3, branch.vectors ? 0 : 1, inner);
        problem.draw(++seed, 1);
        problem.clear(&problem.grad, 1);
        problem.clear(&problem.grad, 4);
        problem.clear(&problem.momentum, 4);
        SCOPED_TRACE(testing::Message() << "dtype " << static_cast<int>(types.dtype) << " cols "
                                        << cols << " segments " << segments << " vectors "
                                        << branch.vectors << " seed " << seed);
        cuda_on_host::launches.clear();
        const Problem before = problem;
        step(&problem);
        if (HasFatalFailure()) return;
        ASSERT_EQ(cuda_on_host::launches.size(), 1u);
        check_against_oracle(before, problem);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// With and without vectors: rows of equal magnitudes have exact norms, so that the CPU's result is
// this one to the bit.
TEST_F(RowNormCuda, RoundsByTheNoiseOfTheCpu) {
  for (const bool vectors : {true, false}) {
    for (const int64_t cols : {64, 4096, 65536}) {
      for (const int64_t segments : {1, 2}) {
        for (const bool cautious : {false, true}) {
          RowNormOptions options = make_options(cols, DType::bfloat16);
          options.momentum = 0;
          options.segments = segments;
          options.cautious = cautious;
          options.stochastic_rounding = true;
          options.seed = 0xfedcba9876543210;
          Problem problem(cols > 4096 ? 2 : 6, options, vectors ? 8 : 3, vectors ? 0 : 1, 2);
          problem.draw(cols, 1);
          problem.position = 7;
          problem.noise_step = 5;
          for (int64_t r = 0; r < problem.rows; ++r) {
            for (int64_t c = 0; c < cols; ++c) {
              problem.grad.set(r, c, std::copysign(1.0, problem.grad.get(r, c)));
            }
          }
          Problem expected = problem;
          RowNormTensor tensor = problem.tensor(), reference = expected.tensor();
          tensor.element_offset = reference.element_offset = vectors ? 12 : 9;
          // Products with these are exact: nothing depends on how they are summed.
          tensor.weight_decay = reference.weight_decay = 0;
          const Problem before = problem;
          step({tensor}, problem.options);
          erlangen::kernels::cpu::row_norm_step(reference, expected.options, 0, expected.rows);
          ASSERT_EQ(problem.param.bytes, expected.param.bytes) << cols << " vectors " << vectors;
          ASSERT_NE(problem.param.bytes, before.param.bytes);
        }
      }
    }
  }
}

TEST_F(RowNormCuda, ReadsNumbersAtRunTime) {
  for (const Branch& branch : branches(DType::bfloat16)) {
    Problem start = problem_for(branch, kTypes[3], branch.first, 7, 1);
    start.options.stochastic_rounding = true;
    const float lr = 0.125f, weight_decay = 0.3f, number = 11;
    const float scale = 1024, fine = 0, overflow = 1;
    Problem expected = start;
    RowNormTensor given = expected.tensor();
    given.lr = lr;
    given.weight_decay = weight_decay;
    given.step = 11;
    for (int64_t r = 0; r < start.rows; ++r) {
      for (int64_t c = 0; c < start.options.cols; ++c) {
        expected.grad.set(r, c, start.grad.get(r, c) / scale);
      }
    }
    step({given}, expected.options);
    Problem problem = start;
    problem.options.grad_scale = &scale;
    problem.options.found_inf = &fine;
    RowNormTensor read = problem.tensor();
    read.lr_pointer = &lr;
    read.weight_decay_pointer = &weight_decay;
    read.step_pointer = &number;
    step({read}, problem.options);
    ASSERT_EQ(problem.param.bytes, expected.param.bytes) << branch.first << " columns";
    ASSERT_EQ(problem.momentum.bytes, expected.momentum.bytes);
    problem = start;
    problem.options.found_inf = &overflow;
    step(&problem);
    ASSERT_EQ(problem.param.bytes, start.param.bytes);
    ASSERT_EQ(problem.momentum.bytes, start.momentum.bytes);
  }
}

TEST_F(RowNormCuda, NothingToDo) {
  Problem empty(0, make_options(64));
  step(&empty);
  Problem narrow(4, make_options(0), 8);
  step(&narrow);
  EXPECT_TRUE(cuda_on_host::launches.empty());
  Problem unsupported(4, make_options(64, DType::float32, DType::float64));
  const RowNormTensor tensor = unsupported.tensor();
  EXPECT_EQ(cuda::row_norm_step(&tensor, 1, unsupported.options, nullptr), cudaErrorInvalidValue);
}

}  // namespace
