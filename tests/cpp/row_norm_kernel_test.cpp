// The row-norm kernel on the CPU, without torch, against an oracle in double.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cpu/row_norm.h"
#include "row_norm_oracle.h"

namespace {

using namespace erlangen::testing;
using erlangen::kernels::cpu::row_norm_step;

void step(Problem* problem) {
  row_norm_step(problem->tensor(), problem->options, 0, problem->rows);
}

// ---- Against the oracle

TEST(RowNormKernel, MatchesOracle) {
  unsigned seed = 0;
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const int64_t cols : {1, 2, 7, 31, 32, 33, 64, 65, 100, 1023, 1024, 1025, 4096, 4129}) {
      for (const double scale :
           narrow ? std::vector<double>{1e-2, 1, 1e2} : std::vector<double>{1e-30, 1, 1e30}) {
        for (int flags = 0; flags < 8; ++flags) {
          RowNormOptions options = make_options(cols, types.dtype, types.momentum_dtype);
          options.nesterov = flags & 1;
          options.maximize = flags & 2;
          options.gradient_support = flags & 4;
          const bool strided = seed % 2;
          Problem problem(4, options, strided ? 3 : 0, strided ? 1 : 0);
          problem.draw(++seed, scale);
          problem.clear(&problem.grad, 1);
          problem.clear(&problem.grad, 2);
          problem.clear(&problem.momentum, 2);
          SCOPED_TRACE(testing::Message()
                       << "dtype " << static_cast<int>(types.dtype) << " momentum "
                       << static_cast<int>(types.momentum_dtype) << " cols " << cols << " scale "
                       << scale << " flags " << flags);
          const Problem before = problem;
          step(&problem);
          check_against_oracle(before, problem);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(RowNormKernel, ZeroStepLeavesParameters) {
  Problem problem(3, make_options(100));
  problem.draw(1, 1);
  problem.decay = 1;
  problem.step_size = 0;
  const Problem before = problem;
  step(&problem);
  EXPECT_EQ(problem.param.bytes, before.param.bytes);
}

TEST(RowNormKernel, NotANumberStaysInItsRow) {
  for (const float bad : {NAN, INFINITY}) {
    for (const bool all : {false, true}) {
      Problem problem(3, make_options(100));
      problem.draw(1, 1);
      for (int64_t c = all ? 0 : 50; c < (all ? 100 : 51); ++c) problem.grad.set(1, c, bad);
      step(&problem);
      EXPECT_TRUE(std::isnan(problem.param.get(1, 50)));
      for (int64_t c = 0; c < 100; ++c) {
        EXPECT_TRUE(std::isfinite(problem.param.get(0, c)));
        EXPECT_TRUE(std::isfinite(problem.param.get(2, c)));
      }
    }
  }
}

// ---- To the bit

TEST(RowNormKernel, RangesGiveTheSameBits) {
  for (const Types& types : kTypes) {
    Problem whole(7, make_options(1027, types.dtype, types.momentum_dtype), 5, 1);
    whole.draw(3, 1);
    const Problem start = whole;
    step(&whole);
    for (int64_t k = 0; k <= 7; ++k) {
      Problem parts = start;
      row_norm_step(parts.tensor(), parts.options, 0, k);
      row_norm_step(parts.tensor(), parts.options, k, 7);
      EXPECT_EQ(parts.param.bytes, whole.param.bytes) << "split at " << k;
      EXPECT_EQ(parts.momentum.bytes, whole.momentum.bytes) << "split at " << k;
    }
  }
}

TEST(RowNormKernel, ScaleOfTheGradientDoesNotMatter) {
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const int exponent : narrow ? std::vector<int>{-1, 3} : std::vector<int>{-90, -1, 3, 90}) {
      Problem problem(3, make_options(333, types.dtype, types.momentum_dtype));
      problem.draw(5, 1);
      Problem scaled = problem;
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t c = 0; c < 333; ++c) {
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

TEST(RowNormKernel, MaximizeIsTheNegatedGradient) {
  for (const bool nesterov : {false, true}) {
    Problem problem(3, make_options(333));
    problem.options.nesterov = nesterov;
    problem.draw(5, 1);
    Problem negated = problem;
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t c = 0; c < 333; ++c) negated.grad.set(r, c, -problem.grad.get(r, c));
    }
    problem.options.maximize = true;
    step(&problem);
    step(&negated);
    EXPECT_EQ(problem.param.bytes, negated.param.bytes);
    EXPECT_EQ(problem.momentum.bytes, negated.momentum.bytes);
  }
}

// ---- Half precision: every pattern is read and written back, every midpoint is rounded to even

TEST(RowNormKernel, HalfPatternsSurvive) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    Problem problem(1, make_options(65536, dtype));
    problem.decay = 1;
    problem.step_size = 0;
    auto* bits = reinterpret_cast<uint16_t*>(problem.param.data());
    for (int i = 0; i < 65536; ++i) bits[i] = static_cast<uint16_t>(i);
    step(&problem);
    for (int i = 0; i < 65536; ++i) {
      const double x = decode_half(dtype, static_cast<uint16_t>(i));
      if (std::isfinite(x)) {
        ASSERT_EQ(bits[i], i);
      } else {
        ASSERT_FALSE(std::isfinite(decode_half(dtype, bits[i]))) << i;
      }
    }
  }
}

TEST(RowNormKernel, HalfRoundsToNearestEven) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    // One column and no momentum: parameter 0 becomes step_size, exactly until it is rounded.
    Problem problem(1, make_options(1, dtype));
    problem.options.momentum = 0;
    problem.grad.set(0, 0, -1);
    const int infinity = dtype == DType::float16 ? 0x7c00 : 0x7f80;
    for (int i = 0; i < infinity; ++i) {
      const double low = decode_half(dtype, static_cast<uint16_t>(i));
      const double high = i + 1 == infinity ? 2 * low - decode_half(dtype, i - 1)
                                            : decode_half(dtype, static_cast<uint16_t>(i + 1));
      const auto middle = static_cast<float>((low + high) / 2);
      for (const float x :
           {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, INFINITY)}) {
        problem.param.set(0, 0, 0);
        problem.step_size = x;
        step(&problem);
        uint16_t bits;
        std::memcpy(&bits, problem.param.data(), sizeof(bits));
        ASSERT_EQ(bits, encode_half(dtype, x)) << x;
      }
    }
  }
}

}  // namespace
