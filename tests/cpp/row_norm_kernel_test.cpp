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
        for (int flags = 0; flags < 16; ++flags) {
          RowNormOptions options = make_options(cols, types.dtype, types.momentum_dtype);
          options.nesterov = flags & 1;
          options.maximize = flags & 2;
          options.gradient_support = flags & 4;
          options.cautious = flags & 8;
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

// ---- Rows in blocks and in two runs

TEST(RowNormKernel, BlocksAndSegmentsMatchOracle) {
  unsigned seed = 0;
  for (const Types& types : kTypes) {
    for (const int64_t cols : {2, 34, 126, 1030, 2304}) {
      for (const int64_t segments : {1, 2}) {
        for (int flags = 0; flags < 8; ++flags) {
          RowNormOptions options = make_options(cols, types.dtype, types.momentum_dtype);
          options.segments = segments;
          options.nesterov = flags & 1;
          options.gradient_support = flags & 2;
          options.cautious = flags & 4;
          Problem problem(6, options, seed % 3, seed % 2, /*inner=*/seed % 2 ? 3 : 2);
          problem.draw(++seed, 1);
          problem.clear(&problem.grad, 1);
          problem.clear(&problem.grad, 4);
          problem.clear(&problem.momentum, 4);
          SCOPED_TRACE(testing::Message() << "dtype " << static_cast<int>(types.dtype) << " cols "
                                          << cols << " segments " << segments << " seed " << seed);
          const Problem before = problem;
          step(&problem);
          check_against_oracle(before, problem);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(RowNormKernel, WhereRowsLieDoesNotMatter) {
  for (const Types& types : kTypes) {
    for (const int64_t segments : {1, 2}) {
      RowNormOptions options = make_options(514, types.dtype, types.momentum_dtype);
      options.segments = segments;
      Problem blocks(6, options, 5, 1, 2);
      options.segments = 1;
      Problem plain(6, options);
      blocks.draw(1, 1);
      for (int64_t r = 0; r < 6; ++r) {
        for (int64_t c = 0; c < 514; ++c) {
          plain.param.set(r, c, blocks.param.get(r, c));
          plain.grad.set(r, c, blocks.grad.get(r, c));
          plain.momentum.set(r, c, blocks.momentum.get(r, c));
        }
      }
      step(&blocks);
      step(&plain);
      for (int64_t r = 0; r < 6; ++r) {
        for (int64_t c = 0; c < 514; ++c) {
          ASSERT_EQ(plain.param.get(r, c), blocks.param.get(r, c));
          ASSERT_EQ(plain.momentum.get(r, c), blocks.momentum.get(r, c));
        }
      }
    }
  }
}

// ---- Stochastic rounding

// The published known answers.
TEST(RowNormKernel, PhiloxKnownAnswers) {
  struct Answer {
    uint32_t counter[4];
    uint64_t key;
    uint32_t words[4];
  };
  const Answer answers[] = {
      {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       0x299f31d0a4093822,
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (Answer answer : answers) {
    erlangen::kernels::philox(answer.counter, answer.key);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(answer.counter[i], answer.words[i]);
  }
}

// A float32 twin says what is rounded, to the bit; the noise is that of the element's place in the
// contiguous parameter.
TEST(RowNormKernel, RoundsByTheNoiseOfEachElement) {
  for (const int64_t cols : {2, 6, 66, 1030, 2304}) {
    for (const int64_t segments : {1, 2}) {
      for (const bool cautious : {false, true}) {
        RowNormOptions options = make_options(cols, DType::bfloat16);
        options.segments = segments;
        options.cautious = cautious;
        options.stochastic_rounding = true;
        options.seed = 0xfedcba9876543210;
        Problem problem(6, options, 3, 1, 3);
        problem.draw(cols, 1);
        problem.position = 7;
        problem.noise_step = 5;
        options.dtype = DType::float32;
        Problem twin(6, options, 0, 0, 3);
        for (int64_t r = 0; r < 6; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            twin.param.set(r, c, problem.param.get(r, c));
            twin.grad.set(r, c, problem.grad.get(r, c));
            twin.momentum.set(r, c, problem.momentum.get(r, c));
          }
        }
        RowNormTensor tensor = problem.tensor();
        tensor.element_offset = 9;
        row_norm_step(tensor, problem.options, 0, 6);
        step(&twin);
        int up = 0;
        for (int64_t r = 0; r < 6; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            const int64_t element = 9 + twin.contiguous().index(r, c);
            uint32_t words[4] = {static_cast<uint32_t>(element / 4), 0, 5, 7};
            erlangen::kernels::philox(words, options.seed);
            const float x = static_cast<float>(twin.param.get(r, c));
            uint32_t bits;
            std::memcpy(&bits, &x, sizeof(bits));
            const uint16_t expected = (bits + (words[element % 4] & 0xffff)) >> 16;
            ASSERT_EQ(problem.param.get(r, c), decode_half(DType::bfloat16, expected))
                << "row " << r << " column " << c;
            up += expected != bits >> 16;
          }
        }
        // Neither all down nor all up.
        EXPECT_GT(up, 0);
        EXPECT_LT(up, 6 * cols);
      }
    }
  }
}

TEST(RowNormKernel, NoNoiseWhereNothingIsRounded) {
  RowNormOptions options = make_options(65536, DType::bfloat16);
  options.stochastic_rounding = true;
  Problem problem(1, options);
  problem.decay = 1;
  problem.step_size = 0;
  auto* bits = reinterpret_cast<uint16_t*>(problem.param.data());
  for (int i = 0; i < 65536; ++i) bits[i] = static_cast<uint16_t>(i);
  step(&problem);
  for (int i = 0; i < 65536; ++i) {
    const double x = decode_half(DType::bfloat16, static_cast<uint16_t>(i));
    // Infinities stay; NaN stays NaN.
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(decode_half(DType::bfloat16, bits[i])));
    } else if (std::isfinite(x)) {
      ASSERT_EQ(bits[i], i);
    }
  }
  EXPECT_EQ(erlangen::kernels::stochastic_bfloat16(INFINITY, 0xffff), 0x7f80);
  EXPECT_EQ(erlangen::kernels::stochastic_bfloat16(-INFINITY, 0xffff), 0xff80);
}

// ---- Numbers that are read at run time

TEST(RowNormKernel, ReadsNumbersAtRunTime) {
  RowNormOptions options = make_options(100, DType::bfloat16);
  options.stochastic_rounding = true;
  Problem expected(3, options);
  expected.draw(1, 1);
  Problem problem = expected;
  RowNormTensor given = expected.tensor();
  given.lr = 0.125f;
  given.weight_decay = 0.3f;
  given.step = 11;
  row_norm_step(given, options, 0, 3);
  const float lr = 0.125f, weight_decay = 0.3f, step = 11;
  RowNormTensor read = problem.tensor();
  read.lr_pointer = &lr;
  read.weight_decay_pointer = &weight_decay;
  read.step_pointer = &step;
  row_norm_step(read, options, 0, 3);
  EXPECT_EQ(problem.param.bytes, expected.param.bytes);
}

TEST(RowNormKernel, DividesByTheGradientScale) {
  for (const Types& types : kTypes) {
    const float scale = 1024;
    Problem problem(3, make_options(100, types.dtype, types.momentum_dtype));
    problem.draw(1, 1);
    Problem expected = problem;
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t c = 0; c < 100; ++c) {
        // Few digits, so that the smaller one is exact in every type.
        const double g = std::nearbyint(8 * problem.grad.get(r, c));
        problem.grad.set(r, c, g);
        expected.grad.set(r, c, g / scale);
      }
    }
    problem.options.grad_scale = &scale;
    step(&problem);
    step(&expected);
    EXPECT_EQ(problem.param.bytes, expected.param.bytes);
    EXPECT_EQ(problem.momentum.bytes, expected.momentum.bytes);
    const float three = 3;  // no power of two
    problem.options.grad_scale = &three;
    const Problem before = problem;
    step(&problem);
    check_against_oracle(before, problem);
  }
}

TEST(RowNormKernel, OverflowChangesNothing) {
  for (const float found : {0.0f, 1.0f}) {
    Problem problem(3, make_options(100));
    problem.draw(1, 1);
    const Problem before = problem;
    problem.options.found_inf = &found;
    step(&problem);
    EXPECT_EQ(problem.param.bytes == before.param.bytes, found != 0);
    EXPECT_EQ(problem.momentum.bytes == before.momentum.bytes, found != 0);
  }
}

}  // namespace
