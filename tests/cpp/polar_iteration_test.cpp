// The polar iteration by ATen's products on the CPU, against the oracle that the CUDA kernel is
// held to, and which matrices that kernel gets.
#include "polar_iteration.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "polar_iteration_oracle.h"

namespace {

using namespace erlangen;
using namespace erlangen::testing;

TEST(PolarInOneLaunch, SmallMatricesInHalfPrecision) {
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    for (const int capability : {80, 86, 89, 90, 100, 120}) {
      const auto taken = [&](int64_t k, int64_t l, size_t steps = 5, bool aligned = true) {
        return polar_in_one_launch(capability, dtype, k, l, steps, aligned);
      };
      // Heads, routers, and the same transposed.
      EXPECT_TRUE(taken(64, 1024));
      EXPECT_TRUE(taken(128, 1024));
      EXPECT_TRUE(taken(64, 2048));
      EXPECT_TRUE(taken(128, 2048));
      EXPECT_TRUE(taken(8, 4096));
      EXPECT_TRUE(taken(1, 1));
      EXPECT_TRUE(taken(65, 64));
      EXPECT_TRUE(taken(64, 1024, 64));
      // So long that one multiprocessor would take longer than the launches.
      EXPECT_FALSE(taken(64, 16384));
      EXPECT_FALSE(taken(128, 4096));
      // What the kernel cannot take.
      EXPECT_FALSE(taken(129, 1024));
      EXPECT_FALSE(taken(64, 1024, 65));
      EXPECT_FALSE(taken(64, 1024, 5, false));
    }
    for (const int capability : {0, 75}) {
      EXPECT_FALSE(polar_in_one_launch(capability, dtype, 64, 1024, 5, true));
    }
  }
  EXPECT_FALSE(polar_in_one_launch(90, at::kFloat, 64, 1024, 5, true));
  EXPECT_FALSE(polar_in_one_launch(90, at::kDouble, 64, 1024, 5, true));
}

// What the CPU makes of a matrix in half precision, in the form that the kernel takes too.
TEST(PolarIteration, HalfPrecisionOnTheCpuMatchesTheOracle) {
  const int64_t before = polar_kernel_count();
  std::mt19937 generator(1);
  for (const auto dtype : {DType::bfloat16, DType::float16}) {
    for (const auto& [k, l] : {std::pair<int64_t, int64_t>{7, 9}, {20, 45}, {40, 30}}) {
      for (const NamedSteps& set : all_coefficient_sets()) {
        for (const bool gram : {false, true}) {
          const Dense start = unit_matrix(dtype, k, l, generator);
          const at::Tensor x = empty_matrices(
              {1, k, l}, at::dtype(dtype == DType::float16 ? at::kHalf : at::kBFloat16));
          x.copy_(at::from_blob(const_cast<double*>(start.data()), {1, k, l}, at::kDouble));
          polar_iteration(x, set.steps, gram);
          const at::Tensor wide = x.to(at::kDouble).contiguous();
          const Dense found(wide.data_ptr<double>(), wide.data_ptr<double>() + k * l);
          const size_t period = gram && dtype == DType::float16 ? 2 : 1;
          const Dense exact = PolarOracle(dtype, PolarOracle::Arithmetic::exact, k, l)
                                  .run(start, set.steps, period);
          EXPECT_LE(frobenius(found, exact),
                    polar_rounding(dtype, start, k, l, set.steps, period, exact))
              << set.name << " " << k << " x " << l << " gram " << gram;
        }
      }
    }
  }
  EXPECT_EQ(polar_kernel_count(), before);
}

}  // namespace
