// The CUDA kernels around the polar iteration, run on the host, against the formulas in plain
// loops.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda_on_host.h"
#include "cuda_test_helpers.h"
#include "kernels/cuda/polar_update.cuh"
#include "kernels/cuda/polar_update_tiles.h"
#include "polar_update_oracle.h"

namespace {

using namespace erlangen::testing;
namespace cuda = erlangen::kernels::cuda;

class PolarUpdateCuda : public testing::Test {
 protected:
  void SetUp() override {
    cuda_on_host::device = {};
    cuda_on_host::launches.clear();
  }
};

// Memory full of NaN for scratch, which must end where it was said to.
class Scratch {
 public:
  Scratch(int64_t count, const PolarUpdateOptions& options)
      : bytes_(cuda::polar_update_scratch_bytes(count, options)),
        memory_((bytes_ + kGuard) / 8 + 1) {
    std::memset(memory_.data(), 0xff, bytes_ + kGuard);
  }
  void* data() { return memory_.data(); }
  void expect_guard_untouched() {
    const char* end = reinterpret_cast<const char*>(memory_.data()) + bytes_;
    EXPECT_EQ(std::count(end, end + kGuard, static_cast<char>(0xff)), kGuard);
  }

 private:
  static constexpr int64_t kGuard = 64;
  int64_t bytes_;
  std::vector<double> memory_;
};

// Runs `between` on x after the one call and before the other.
template <typename Between>
void step(PolarProblem* problem, Between&& between) {
  const PolarUpdateOptions o = problem->call();
  const std::vector<PolarTensor> tensors = problem->tensors();
  const auto count = static_cast<int64_t>(tensors.size());
  Scratch scratch(count, o);
  ASSERT_EQ(cuda::polar_update_prepare(tensors.data(), count, o, scratch.data(), nullptr),
            cudaSuccess)
      << cuda_on_host::take_failure();
  between();
  ASSERT_EQ(cuda::polar_update_finish(count, o, scratch.data(), nullptr), cudaSuccess)
      << cuda_on_host::take_failure();
  scratch.expect_guard_untouched();
}
void step(PolarProblem* problem) {
  step(problem, [] {});
}

// Half of what sums lose: sixteen squares of a thread, then the threads of a warp, its block's
// warps, the matrix's tiles in the same way, all of them in double.
double norm_error(const PolarUpdateOptions& o) {
  return o.dtype == DType::float64 ? (17 + 4 * 5 + 1) / 2.0 * 0x1p-53 : 18 / 2.0 * 0x1p-24;
}

// Tiles are 64 rows by 64 columns, packs four columns.
const std::vector<PolarShape> kShapes = {{1, 1, 1},   {2, 3, 4},    {1, 64, 64}, {3, 65, 66},
                                         {1, 130, 8}, {1, 5, 1032}, {2, 1, 40},  {2, 40, 2},
                                         {2, 60, 68}, {1, 7, 129}};

PolarProblem problem_for(const PolarShape& shape, const PolarTypes& types, unsigned seed) {
  PolarUpdateOptions options = polar_options(shape, types, seed);
  options.element_offset = seed % 3 ? seed % 7 : 8;
  const int64_t padding = seed % 4 == 3 ? 8 : seed % 4;  // some keep packs aligned
  PolarProblem problem(2, options, padding, seed % 4 == 3 ? 0 : seed % 3, 8);
  problem.draw(seed);
  return problem;
}

TEST_F(PolarUpdateCuda, MatchesPlainLoops) {
  unsigned seed = 0;
  std::set<const void*> kernels;
  for (const PolarTypes& types : polar_types()) {
    for (const PolarShape& shape : kShapes) {
      for (int i = 0; i < 3; ++i) {
        seed += 5;  // so that over the shapes and types all flags meet
        SCOPED_TRACE(testing::Message()
                     << "types " << static_cast<int>(types.dtype) << " "
                     << static_cast<int>(types.momentum_dtype) << " "
                     << static_cast<int>(types.product_dtype) << " rows " << shape.rows << " cols "
                     << shape.cols << " seed " << seed);
        cuda_on_host::launches.clear();
        PolarProblem problem = problem_for(shape, types, seed);
        PolarProblem before = problem;
        step(&problem, [&] {
          check_prepared(before, problem, norm_error(problem.options));
          problem.draw_x(seed);
          before = problem;
        });
        if (HasFatalFailure()) return;
        check_finished(before, problem);
        if (HasFailure()) return;
        // The table, three passes, of which one normalises, and the last.
        ASSERT_EQ(cuda_on_host::launches.size(), problem.options.unscaled ? 4u : 5u);
        for (const auto& launch : cuda_on_host::launches) kernels.insert(launch.kernel);
      }
    }
  }
  // The table; momentum: 7 types, of which 4 may store z; casts: 22 types, and 7 of stored z;
  // normalisation: 7; parameters: 13.
  EXPECT_EQ(kernels.size(), 1u + 11 + 29 + 7 + 13);
}

TEST_F(PolarUpdateCuda, OrderOfThreadsAndNumberOfBlocksDoNotMatter) {
  for (const bool transposed : {false, true}) {
    for (const bool nesterov : {false, true}) {
      PolarUpdateOptions options =
          polar_options(2, 130, 70, {DType::bfloat16, DType::float32, DType::float16});
      options.transposed = transposed;
      options.nesterov = nesterov;
      options.eps = 1e-7;
      options.stochastic_rounding = true;
      std::set<std::string> results;
      for (const int sms : {1, 3, 100}) {
        cuda_on_host::device.sms = sms;
        results.merge(in_all_orders<std::string>([&] {
          PolarProblem problem(3, options, 0, 0, 8);
          problem.draw(1, 1);
          step(&problem);
          std::string bytes(reinterpret_cast<const char*>(problem.storage.data()),
                            8 * problem.storage.size());
          for (const PolarParameter& p : problem.parameters) {
            bytes.append(p.param.bytes.data(), p.param.bytes.size());
            bytes.append(p.momentum.bytes.data(), p.momentum.bytes.size());
          }
          return bytes;
        }));
      }
      EXPECT_EQ(results.size(), 1u);
    }
  }
}

// More tensors than one copy of the table takes, and a tensor alone: to the same bits. What is
// aligned gives those of what is not.
TEST_F(PolarUpdateCuda, MatricesDoNotSeeEachOther) {
  PolarUpdateOptions options =
      polar_options(2, 20, 68, {DType::float32, DType::float32, DType::bfloat16});
  options.nesterov = true;
  PolarProblem many(100, options, 0, 0, 8);
  many.draw(1, 1);
  PolarProblem before = many;
  step(&many);
  constexpr int64_t kCopied = cuda::kPolarTensorsPerCopy;
  const int64_t copies = (100 + kCopied - 1) / kCopied;
  EXPECT_GT(copies, 1);
  EXPECT_EQ(static_cast<int64_t>(cuda_on_host::launches.size()), copies + 4);
  for (const int64_t i : {int64_t{0}, kCopied - 1, kCopied, int64_t{99}}) {
    for (const int64_t offset : {0, 1}) {
      PolarProblem one(1, options, offset, offset, 8);
      one.each([&](int64_t, int64_t k, int64_t r, int64_t c) {
        const int64_t row = k * 20 + r;
        one.parameters[0].param.set(row, c, before.parameters[i].param.get(row, c));
        one.parameters[0].grad.set(row, c, before.parameters[i].grad.get(row, c));
        one.parameters[0].momentum.set(row, c, before.parameters[i].momentum.get(row, c));
      });
      step(&one);
      one.each([&](int64_t, int64_t k, int64_t r, int64_t c) {
        const int64_t row = k * 20 + r;
        ASSERT_EQ(one.x(k, r, c), many.x(2 * i + k, r, c));
        ASSERT_EQ(one.parameters[0].param.get(row, c), many.parameters[i].param.get(row, c));
        ASSERT_EQ(one.parameters[0].momentum.get(row, c), many.parameters[i].momentum.get(row, c));
      });
    }
  }
}

TEST_F(PolarUpdateCuda, ZeroStaysZeroAndNaNSpreads) {
  for (const PolarTypes& types : polar_types()) {
    PolarProblem problem(1, polar_options(3, 4, 70, types), 0, 0, 8);
    problem.draw(1, 1);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 70; ++c) {
        problem.parameters[0].grad.set(r, c, 0);
        problem.parameters[0].momentum.set(r, c, 0);
      }
    }
    // All ones are a NaN in every storage type.
    Buffer& momentum = problem.parameters[0].momentum;
    const int bytes = format(types.momentum_dtype).bytes;
    std::memset(momentum.data() + momentum.index(5, 66) * bytes, 0xff, bytes);
    step(&problem);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 70; ++c) {
        EXPECT_EQ(problem.x(0, r, c), 0);
        EXPECT_TRUE(std::isnan(problem.x(1, r, c)));
        EXPECT_FALSE(std::isnan(problem.x(2, r, c)));
      }
    }
  }
}

TEST_F(PolarUpdateCuda, ReadsItsScalarsAtRunTime) {
  PolarUpdateOptions options =
      polar_options(1, 9, 20, {DType::bfloat16, DType::float32, DType::float32});
  options.stochastic_rounding = true;
  PolarProblem expected(1, options, 0, 0, 8);
  expected.draw(1, 1);
  PolarProblem problem = expected;
  expected.lr = 0.125, expected.weight_decay = 0.5, expected.step = 11;
  step(&expected);
  const float lr = 0.125f, weight_decay = 0.5f, step_count = 11;
  PolarTensor tensor = problem.tensor(0);
  tensor.lr_pointer = &lr, tensor.weight_decay_pointer = &weight_decay;
  tensor.step_pointer = &step_count;
  const PolarUpdateOptions o = problem.call();
  Scratch scratch(1, o);
  ASSERT_EQ(cuda::polar_update_prepare(&tensor, 1, o, scratch.data(), nullptr), cudaSuccess);
  ASSERT_EQ(cuda::polar_update_finish(1, o, scratch.data(), nullptr), cudaSuccess);
  EXPECT_EQ(problem.parameters[0].param.bytes, expected.parameters[0].param.bytes);
}

TEST_F(PolarUpdateCuda, OverflowChangesNothing) {
  for (const float found : {0.0f, 1.0f}) {
    PolarProblem problem(
        1, polar_options(1, 9, 20, {DType::float32, DType::bfloat16, DType::float32}), 0, 0, 8);
    problem.draw(1, 1);
    const PolarProblem before = problem;
    problem.options.found_inf = &found;
    step(&problem);
    EXPECT_EQ(problem.parameters[0].momentum.bytes == before.parameters[0].momentum.bytes,
              found != 0);
    EXPECT_EQ(problem.parameters[0].param.bytes == before.parameters[0].param.bytes, found != 0);
  }
}

TEST_F(PolarUpdateCuda, RefusesWhatItCannotTake) {
  const auto prepare = [](PolarUpdateOptions options) {
    options.x_row = options.x_row ? options.x_row : 8, options.x_matrix = 64;
    Scratch scratch(1, options);
    PolarTensor tensor = {};
    return cuda::polar_update_prepare(&tensor, 1, options, scratch.data(), nullptr);
  };
  EXPECT_EQ(prepare(polar_options(1, 8, 8, {DType::float32, DType::float64, DType::float32})),
            cudaErrorInvalidValue);
  EXPECT_EQ(prepare(polar_options(1, 8, 8, {DType::float32, DType::float32, DType::float64})),
            cudaErrorInvalidValue);
  PolarUpdateOptions options =
      polar_options(1, 8, 7, {DType::float32, DType::float32, DType::float32});
  options.x_row = 7;
  EXPECT_EQ(prepare(options), cudaErrorInvalidValue);
  EXPECT_TRUE(cuda_on_host::launches.empty());
  // Nothing to do.
  EXPECT_EQ(prepare(polar_options(0, 8, 8, {DType::float32, DType::float32, DType::float32})),
            cudaSuccess);
  EXPECT_TRUE(cuda_on_host::launches.empty());
}

}  // namespace
