// A symmetric product on Hopper from its schedule to its last store, with loops on the host in
// place of the kernel that needs wgmma and TMA, and the kernels that finish it as they are.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda_test_helpers.h"
#include "kernels/cuda/symmetric_product_sm90_finish.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

using erlangen::kernels::DType;
using erlangen::kernels::cuda::SymmetricProduct;
namespace cuda = erlangen::kernels::cuda;
namespace sm90 = erlangen::kernels::cuda::sm90;
using sm90::kBlock;

constexpr int64_t kN = 300, kK = 150, kBatch = 2;  // three steps of k
constexpr int64_t kRowK = 152, kRowN = 304;
constexpr int64_t kMatrixK = kN * kRowK + 8, kMatrixN = kN * kRowN + 16;

template <typename T>
struct Operands {
  std::vector<float> a, b;  // whose values T holds exactly
  std::vector<T> c, d;
  SymmetricProduct p;

  // Small integers: every sum is exact, so that the order of adding does not matter.
  Operands(bool gram, float beta) {
    uint32_t state = 1;
    const auto small = [&] {
      state = state * 1664525u + 1013904223u;
      return static_cast<float>(static_cast<int>(state >> 24) % 9 - 4);
    };
    a.resize(kBatch * kMatrixK);
    for (float& x : a) x = small();
    b = a;
    if (!gram) {
      for (float& x : b) x = small();
    }
    c.resize(kBatch * kMatrixN);
    for (int64_t matrix = 0; matrix < kBatch; ++matrix) {
      for (int64_t i = 0; i < kN; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          c[matrix * kMatrixN + i * kRowN + j] = c[matrix * kMatrixN + j * kRowN + i] = T(small());
        }
      }
    }
    d.assign(kBatch * kMatrixN, T(7.0f));
    p = {};
    p.batch = kBatch, p.n = kN, p.k = kK;
    p.a_row = p.b_row = kRowK, p.c_row = p.d_row = kRowN;
    p.a_batch = p.b_batch = kMatrixK, p.c_batch = p.d_batch = kMatrixN;
    p.alpha = 2, p.beta = beta;
    p.dtype = sizeof(T) == 2 && T(1.0f).bits == 0x3c00 ? DType::float16 : DType::bfloat16;
  }

  void point() {
    p.d = d.data();
    p.c = p.beta == 0.0f ? nullptr : c.data();
  }

  float sum(int64_t matrix, int64_t i, int64_t j, int64_t first, int64_t last) const {
    float total = 0;
    if (i >= kN || j >= kN) return total;  // as TMA loads
    for (int64_t k = first; k < last && k < kK; ++k) {
      total += a[matrix * kMatrixK + i * kRowK + k] * b[matrix * kMatrixK + j * kRowK + k];
    }
    return total;
  }

  T result(int64_t matrix, int64_t i, int64_t j, float total) const {
    float x = p.alpha * total;
    if (p.beta != 0.0f) {
      x += p.beta * static_cast<float>(c[matrix * kMatrixN + i * kRowN + j]);
    }
    return T(x);
  }

  void store(int64_t matrix, int64_t i, int64_t j, T x) {
    if (i < kN && j < kN) d[matrix * kMatrixN + i * kRowN + j] = x;
  }

  // What the wgmma kernel does, one thread block of a cluster after the other.
  void multiply(const sm90::Schedule& s) {
    for (int32_t index = 0; index < s.units; ++index) {
      const sm90::Unit unit = sm90::unit_at(s.triangle, s.parts, s.pairs, index);
      const int64_t first = int64_t{unit.part} * s.part_steps * sm90::kStepK;
      const int32_t steps = unit.part + 1 < s.parts ? s.part_steps : s.last_steps;
      const int64_t last = first + int64_t{steps} * sm90::kStepK;
      for (int rank = 0; rank < 2; ++rank) {
        const int32_t row = sm90::row_of(unit.pair, rank);
        const int64_t columns = int64_t{unit.pair.column} * s.triangle.width * kBlock;
        if (s.parts > 1) {
          float* out = s.partials + sm90::partial_offset(s.parts, s.pairs, unit.matrix, unit.part,
                                                         unit.index_in_matrix, rank);
          for (int thread = 0; thread < sm90::kMmaThreads; ++thread) {
            for (int v = 0; v < sm90::kPartialFloats / sm90::kMmaThreads; ++v) {
              const int i = sm90::accumulator_row(thread, v);
              const int j = sm90::accumulator_column(thread, v);
              out[i * kBlock + j] =
                  sum(unit.matrix, int64_t{row} * kBlock + i, columns + j, first, last);
            }
          }
          continue;
        }
        for (int64_t i = int64_t{row} * kBlock; i < (int64_t{row} + 1) * kBlock && i < kN; ++i) {
          for (int64_t j = columns; j < columns + s.triangle.width * kBlock && j < kN; ++j) {
            const T x = result(unit.matrix, i, j, sum(unit.matrix, i, j, first, last));
            store(unit.matrix, i, j, x);
            if (sm90::is_mirrored(row, unit.pair.column, s.triangle.width)) {
              store(unit.matrix, j, i, x);
            }
          }
        }
      }
    }
  }
};

std::vector<uint16_t> bits(const std::vector<__half>& values) {
  std::vector<uint16_t> result;
  for (const __half x : values) result.push_back(x.bits);
  return result;
}
std::vector<uint16_t> bits(const std::vector<__nv_bfloat16>& values) {
  std::vector<uint16_t> result;
  for (const __nv_bfloat16 x : values) result.push_back(x.bits);
  return result;
}

template <typename T>
void check(const sm90::Plan& plan, bool gram, float beta, const char* kernel) {
  SCOPED_TRACE(testing::Message() << "width " << plan.width << ", parts " << plan.cut.parts
                                  << ", gram " << gram << ", beta " << beta);
  Operands<T> expected(gram, beta);
  for (int64_t matrix = 0; matrix < kBatch; ++matrix) {
    for (int64_t i = 0; i < kN; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const T x = expected.result(matrix, i, j, expected.sum(matrix, i, j, 0, kK));
        expected.store(matrix, i, j, x);
        expected.store(matrix, j, i, x);
      }
    }
  }
  Operands<T> multiplied(gram, beta);
  sm90::Schedule schedule = sm90::schedule_for(plan, kN, kK, kBatch, gram, nullptr);
  std::vector<float> partials(sm90::partial_offset(schedule.parts, schedule.pairs, kBatch, 0, 0, 0),
                              1e9f);
  schedule.partials = partials.data();
  multiplied.multiply(schedule);
  const auto results = erlangen::testing::in_all_orders<std::vector<uint16_t>>([&] {
    Operands<T> operands = multiplied;
    operands.point();
    cuda_on_host::launches.clear();
    EXPECT_EQ(cuda::symmetric_product_sm90_finish(operands.p, schedule, nullptr), cudaSuccess)
        << cuda_on_host::take_failure();
    EXPECT_EQ(cuda_on_host::launches.size(), kernel == nullptr ? 0u : 1u) << kernel;
    return bits(operands.d);
  });
  ASSERT_EQ(results.size(), 1u);
  ASSERT_EQ(*results.begin(), bits(expected.d));  // what lies beside the matrices included
}

template <typename T>
class SymmetricProductSm90Cuda : public testing::Test {};
using Types = testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(SymmetricProductSm90Cuda, Types);

TYPED_TEST(SymmetricProductSm90Cuda, WholeSums) {
  for (const int width : {1, 2}) {
    for (const float beta : {0.0f, 3.0f}) {
      check<TypeParam>({width, {1, 3}}, true, beta, nullptr);
      check<TypeParam>({width, {1, 3}}, false, beta, "mirror_diagonal");
    }
  }
}

TYPED_TEST(SymmetricProductSm90Cuda, SumsInParts) {
  for (const bool gram : {true, false}) {
    check<TypeParam>({1, {2, 2}}, gram, 0.0f, "add_parts");
    check<TypeParam>({1, {3, 1}}, gram, 3.0f, "add_parts");
  }
}

// Without the kernel that finishes it the product would not be symmetric: the test above can fail.
TYPED_TEST(SymmetricProductSm90Cuda, SquaresNeedTheirMirror) {
  for (const int width : {1, 2}) {
    Operands<TypeParam> operands(false, 0.0f);
    operands.multiply(sm90::schedule_for({width, {1, 3}}, kN, kK, kBatch, false, nullptr));
    EXPECT_NE(operands.d[1].bits, operands.d[kRowN].bits);
  }
}

}  // namespace
