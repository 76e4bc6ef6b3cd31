// The centered row-norm kernel on the CPU, without torch, against an oracle in double.

#include "kernels/cpu/centered_row_norm.h"

#include <gtest/gtest.h>

#include <cstring>

#include "centered_row_norm_oracle.h"

namespace {

using namespace erlangen::testing;
namespace cpu = erlangen::kernels::cpu;

// All passes, each over its ranges of `grain` from the last to the first.
void step_in_ranges(const RowNormTensor& tensor, const RowNormOptions& options, void* scratch,
                    int64_t grain) {
  const auto ranges = [&](int64_t count, auto&& pass) {
    for (int64_t begin = (count - 1) / grain * grain; begin >= 0; begin -= grain) {
      pass(begin, std::min(begin + grain, count));
    }
  };
  const auto chunks = [&](auto&& pass) {
    ranges(cpu::centered_chunks(tensor),
           [&](int64_t begin, int64_t end) { pass(tensor, options, scratch, begin, end); });
  };
  const auto mean = [&](bool of_units) {
    ranges(cpu::centered_column_blocks(tensor, options), [&](int64_t begin, int64_t end) {
      cpu::centered_row_norm_mean(tensor, options, scratch, of_units, begin, end);
    });
  };
  chunks(cpu::centered_row_norm_sums);
  mean(false);
  chunks(cpu::centered_row_norm_units);
  mean(true);
  chunks(cpu::centered_row_norm_update);
}

void step(Problem* problem, std::vector<char>* scratch) {
  const RowNormTensor tensor = problem->tensor();
  step_in_ranges(tensor, problem->options, poisoned(scratch, {tensor}, problem->options), 1 << 20);
}

TEST(CenteredRowNormKernel, MatchesOracle) {
  unsigned seed = 0;
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const int64_t rows : {1, 2, 63, 64, 65, 130}) {
      for (const int64_t cols : {1, 7, 33, 100, 300}) {
        for (int flags = seed % 2; flags < 16; flags += 2) {
          RowNormOptions options = make_options(cols, types.dtype, types.momentum_dtype);
          options.nesterov = flags & 1;
          options.maximize = flags & 2;
          options.gradient_support = flags & 4;
          options.stochastic_rounding = flags & 8;
          const int64_t matrices = 1 + seed % 3;
          const double scales[] = {narrow ? 1e-2 : 1e-30, 1, narrow ? 1e2 : 1e30};
          Problem problem(matrices * rows, options, seed % 2 ? 3 : 0, seed % 2, rows);
          ++seed;
          problem.draw(seed, scales[seed % 3]);
          problem.clear(&problem.grad, rows / 2);
          SCOPED_TRACE(testing::Message()
                       << "dtype " << static_cast<int>(types.dtype) << " momentum "
                       << static_cast<int>(types.momentum_dtype) << " rows " << rows << " cols "
                       << cols << " flags " << flags << " seed " << seed);
          const Problem before = problem;
          centered_step(step, &problem);
          check_centered(before, problem);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CenteredRowNormKernel, EqualRowsDoNotMove) { check_equal_rows_do_not_move(step); }
TEST(CenteredRowNormKernel, ShiftsDoNotMatter) { check_shifts_do_not_matter(step); }
TEST(CenteredRowNormKernel, ScaleOfTheGradientDoesNotMatter) { check_scale_does_not_matter(step); }
TEST(CenteredRowNormKernel, NotANumberStaysInItsMatrix) { check_nan_stays_in_its_matrix(step); }
TEST(CenteredRowNormKernel, MeanOfManyRows) { check_mean_of_many_rows(step, 150001); }
TEST(CenteredRowNormKernel, OverflowChangesNothing) { check_overflow_changes_nothing(step); }
TEST(CenteredRowNormKernel, ReadsNumbersAtRunTime) { check_reads_numbers_at_run_time(step); }
TEST(CenteredRowNormKernel, ZeroGradientMovesNothing) { check_zero_gradient(step); }

TEST(CenteredRowNormKernel, RangesGiveTheSameBits) {
  for (const Types& types : kTypes) {
    Problem whole(3 * 300, make_options(515, types.dtype, types.momentum_dtype), 5, 1, 300);
    whole.draw(3, 1);
    const Problem start = whole;
    centered_step(step, &whole);
    for (const int64_t grain : {1, 4}) {
      Problem parts = start;
      std::vector<char> scratch;
      step_in_ranges(parts.tensor(), parts.options,
                     poisoned(&scratch, {parts.tensor()}, parts.options), grain);
      EXPECT_EQ(parts.param.bytes, whole.param.bytes);
      EXPECT_EQ(parts.momentum.bytes, whole.momentum.bytes);
    }
  }
}

// A float32 twin says what is rounded, to the bit.
TEST(CenteredRowNormKernel, RoundsByTheNoiseOfEachElement) {
  RowNormOptions options = make_options(103, DType::bfloat16);
  options.stochastic_rounding = true;
  options.seed = 77;
  Problem problem(2 * 65, options, 3, 1, 65);
  problem.draw(1, 1);
  problem.position = 7;
  problem.noise_step = 5;
  options.dtype = DType::float32;
  Problem twin(2 * 65, options, 0, 0, 65);
  for (int64_t r = 0; r < 2 * 65; ++r) {
    for (int64_t c = 0; c < 103; ++c) {
      twin.param.set(r, c, problem.param.get(r, c));
      twin.grad.set(r, c, problem.grad.get(r, c));
      twin.momentum.set(r, c, problem.momentum.get(r, c));
    }
  }
  centered_step(step, &problem);
  centered_step(step, &twin);
  for (int64_t r = 0; r < 2 * 65; ++r) {
    for (int64_t c = 0; c < 103; ++c) {
      const auto element = static_cast<uint32_t>(r * 103 + c);
      uint32_t words[4] = {element / 4, 0, 5, 7};
      erlangen::kernels::philox(words, options.seed);
      const float x = static_cast<float>(twin.param.get(r, c));
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      const uint16_t expected = (bits + (words[element % 4] & 0xffff)) >> 16;
      ASSERT_EQ(problem.param.get(r, c), decode_half(DType::bfloat16, expected));
    }
  }
}

TEST(CenteredRowNormKernel, RefusesWhatHasNoMeaning) {
  RowNormOptions options = make_options(64);
  EXPECT_TRUE(erlangen::kernels::centered_row_norm_supports(options));
  options.cautious = true;
  EXPECT_FALSE(erlangen::kernels::centered_row_norm_supports(options));
  options.cautious = false;
  options.segments = 2;
  EXPECT_FALSE(erlangen::kernels::centered_row_norm_supports(options));
}

}  // namespace
