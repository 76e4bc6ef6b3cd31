// The division of work of the wgmma kernel for symmetric products, enumerated on the host.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/symmetric_product_sm90_tiles.h"
#ifdef ERLANGEN_CUDA
#include "kernels/cuda/symmetric_product_sm90.cuh"
#endif

namespace {

namespace cuda = erlangen::kernels::cuda;
namespace sm90 = cuda::sm90;
using sm90::kBlock;

// The time of a full product in the better of the same two tiles over that of the symmetric one,
// for one matrix alone. 1.0 at n = 2048 (k <= 2048), 1.7 at 4096, where waves of 132 are nearly
// full; tends to 2. More matrices fill their waves better.
double estimated_speedup(int64_t n, int64_t k, bool equal_operands) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  const cuda::Cut whole = {1, static_cast<int32_t>((k + sm90::kStepK - 1) / sm90::kStepK)};
  const auto full = [&](const cuda::Costs& costs, int64_t tiles) {
    return cuda::estimated_time(costs, (tiles + 1) / 2, whole);
  };
  const sm90::Plan plan = sm90::plan_for(n, k, equal_operands);
  const int32_t pairs = sm90::pairs_of(sm90::triangle_of(n, plan.width, equal_operands));
  return std::min(full(sm90::kNarrowCosts, blocks * blocks),
                  full(sm90::kWideCosts, blocks * ((blocks + 1) / 2))) /
         cuda::estimated_time(plan.width == 1 ? sm90::kNarrowCosts : sm90::kWideCosts, pairs,
                              plan.cut);
}

// How often each block of 128 x 128 is written by a matrix's pairs, mirrors included.
std::vector<int> writes(const sm90::Triangle& t) {
  std::vector<int> count(static_cast<size_t>(t.rows) * t.rows, 0);
  for (int32_t index = 0; index < sm90::pairs_of(t); ++index) {
    const sm90::Pair pair = sm90::pair_at(t, index);
    for (int rank = 0; rank < 2; ++rank) {
      const int32_t row = sm90::row_of(pair, rank);
      if (row == t.rows) continue;  // beyond the matrix, and so are its mirrors
      for (int32_t b = 0; b < t.width; ++b) {
        const int32_t column = pair.column * t.width + b;
        if (column >= t.rows) continue;
        ++count.at(static_cast<size_t>(row) * t.rows + column);
        if (sm90::is_mirrored(row, pair.column, t.width)) {
          ++count.at(static_cast<size_t>(column) * t.rows + row);
        }
      }
    }
  }
  return count;
}

TEST(SymmetricProductSm90, EachBlockOnce) {
  for (const int width : {1, 2}) {
    for (const bool equal : {false, true}) {
      for (int32_t rows = 1; rows <= 67; ++rows) {
        for (const int strip : {0, 1, 2, 3, 5, 1000}) {
          for (const int64_t n : {rows * kBlock, rows * kBlock - kBlock + 1}) {
            sm90::Triangle t = sm90::triangle_of(n, width, equal);
            if (strip > 0) t.strip = strip;
            ASSERT_EQ(t.rows, rows);
            for (const int count : writes(t)) {
              ASSERT_EQ(count, 1) << n << ", width " << width << ", equal " << equal << ", strip "
                                  << strip;
            }
          }
        }
      }
    }
  }
}

// Rows of A that are not multiplied in vain: what there is to save is saved.
TEST(SymmetricProductSm90, ComputesATriangle) {
  for (int64_t rows = 1; rows <= 100; ++rows) {
    const int64_t half = rows * (rows + 1) / 2;
    const auto tiles = [&](int width, bool equal) {
      return int64_t{2} * sm90::pairs_of(sm90::triangle_of(rows * kBlock, width, equal));
    };
    EXPECT_LE(tiles(1, true), half + 3) << rows;
    EXPECT_LE(tiles(1, false), half + (rows + 1) / 2) << rows;
    const int64_t across = (rows + 1) / 2;
    EXPECT_EQ(tiles(2, true), across * (across + 1)) << rows;
  }
}

// Below the diagonal D has what the formula gives unless the operands are equal.
TEST(SymmetricProductSm90, TransposesOnlyEqualOperands) {
  for (const int width : {1, 2}) {
    const sm90::Triangle t = sm90::triangle_of(33 * kBlock, width, false);
    for (int32_t index = 0; index < sm90::pairs_of(t); ++index) {
      const sm90::Pair pair = sm90::pair_at(t, index);
      for (int rank = 0; rank < 2; ++rank) {
        EXPECT_GE(sm90::row_of(pair, rank) / width, pair.column);
      }
    }
  }
}

// Large matrices stay within 32 bits, and clusters that run together touch few rows.
TEST(SymmetricProductSm90, Large) {
  for (const int64_t n : {int64_t{1} << 20, (int64_t{1} << 22) - 1}) {
    for (const bool equal : {false, true}) {
      const sm90::Triangle t = sm90::triangle_of(n, 1, equal);
      const int64_t half = int64_t{t.rows} * (t.rows + 1) / 2;
      const int32_t pairs = sm90::pairs_of(t);
      EXPECT_GE(int64_t{2} * pairs, half);
      EXPECT_LE(int64_t{2} * pairs, half + t.rows);
      for (int32_t index = 0; index < pairs; index += 99991) {
        const sm90::Pair pair = sm90::pair_at(t, index);
        ASSERT_TRUE(pair.column >= 0 && pair.column < t.rows);
        for (const int32_t row : pair.rows) ASSERT_TRUE(row >= 0 && row <= t.rows);
      }
    }
  }
  const sm90::Triangle t = sm90::triangle_of(16384, 1, true);
  std::vector<int32_t> touched;
  for (int32_t index = 0; index < sm90::kSMs / 2; ++index) {
    const sm90::Pair pair = sm90::pair_at(t, index);
    touched.insert(touched.end(), {pair.rows[0], pair.rows[1], pair.column});
  }
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  // A strip of 8 columns, and 132 / 8 rows of tiles with a torn row at either end.
  EXPECT_LE(touched.size(), 8u + 17u + 2u);
}

// Each unit of a batch once over all clusters, whatever their number; its part of k follows the one
// before; no two keep their sums in the same place.
TEST(SymmetricProductSm90, EachUnitOnce) {
  for (const int64_t n : {100, 300, 1000}) {
    for (const int32_t parts : {1, 2, 5}) {
      for (const int32_t batch : {1, 3}) {
        for (const int32_t clusters : {1, 7, 66, 500}) {
          const sm90::Triangle t = sm90::triangle_of(n, 1, true);
          const int32_t pairs = sm90::pairs_of(t);
          std::vector<int> visits(static_cast<size_t>(2) * pairs * parts * batch, 0);
          for (int32_t cluster = 0; cluster < clusters; ++cluster) {
            for (int32_t i = cluster; i < pairs * parts * batch; i += clusters) {
              const sm90::Unit unit = sm90::unit_at(t, parts, pairs, i);
              ASSERT_TRUE(unit.part >= 0 && unit.part < parts);
              ASSERT_TRUE(unit.matrix >= 0 && unit.matrix < batch);
              for (int rank = 0; rank < 2; ++rank) {
                const int64_t offset = sm90::partial_offset(parts, pairs, unit.matrix, unit.part,
                                                            unit.index_in_matrix, rank);
                ASSERT_EQ(offset % sm90::kPartialFloats, 0);
                ++visits.at(offset / sm90::kPartialFloats);
              }
            }
          }
          for (const int count : visits) ASSERT_EQ(count, 1);
        }
      }
    }
  }
}

TEST(SymmetricProductSm90, AccumulatorsCoverTheTile) {
  std::vector<int> count(kBlock * kBlock, 0);
  for (int thread = 0; thread < sm90::kMmaThreads; ++thread) {
    for (int v = 0; v < sm90::kPartialFloats / sm90::kMmaThreads; ++v) {
      ++count.at(sm90::accumulator_row(thread, v) * kBlock + sm90::accumulator_column(thread, v));
    }
  }
  for (const int c : count) ASSERT_EQ(c, 1);
}

TEST(SymmetricProductSm90, PlanCoversK) {
  for (const bool equal : {false, true}) {
    for (const int64_t n : {1, 64, 129, 1000, 1024, 2048, 4096, 8192, 20000}) {
      for (const int64_t k : {1, 64, 65, 4096, 20000, 151936, 1000000}) {
        const sm90::Plan plan = sm90::plan_for(n, k, equal);
        const sm90::Schedule s = sm90::schedule_for(plan, n, k, 1, equal, nullptr);
        EXPECT_GE(s.last_steps, 1);
        EXPECT_LE(s.last_steps, s.part_steps);
        EXPECT_EQ(int64_t{s.parts - 1} * s.part_steps + s.last_steps,
                  (k + sm90::kStepK - 1) / sm90::kStepK);
        if (plan.cut.parts > 1) {
          EXPECT_EQ(plan.width, 1);
          EXPECT_GE(plan.cut.part_steps, cuda::kLeastPartSteps);
          EXPECT_LE(4 * sm90::partial_offset(plan.cut.parts, s.pairs, 1, 0, 0, 0),
                    cuda::kMostPartialBytes);
        }
      }
    }
  }
  // A Gram matrix of 8 x 8 blocks alone would leave three quarters of the SMs idle.
  EXPECT_GT(sm90::plan_for(1024, 151936, true).cut.parts, 4);
  EXPECT_EQ(sm90::plan_for(4096, 4096, true).cut.parts, 1);
  EXPECT_EQ(sm90::plan_for(4096, 4096, true).width, 1);  // 528 tiles: four full waves
  EXPECT_EQ(sm90::plan_for(8192, 8192, true).width, 2);
  EXPECT_GE(estimated_speedup(4096, 4096, true), 1.5);
}

// So that nobody need ask for the shape before taking the kernel.
TEST(SymmetricProductSm90, IsNeverSlowerThanAFullProductFromTwoBlocksOn) {
  for (int64_t blocks = 2; blocks <= 100; ++blocks) {
    for (const int64_t k : {1, 64, 256, 1024, 4096, 65536, 151936}) {
      for (const bool equal : {false, true}) {
        EXPECT_GE(estimated_speedup(blocks * kBlock, k, equal), 1.0) << blocks << ", " << k;
      }
    }
  }
}

#ifdef ERLANGEN_CUDA
TEST(SymmetricProductSm90, Supports) {
  const auto pointer = [](uintptr_t address) { return reinterpret_cast<void*>(address); };
  cuda::SymmetricProduct p = {};
  p.a = p.b = pointer(1 << 20);
  p.d = pointer(1 << 24);
  p.batch = 2, p.n = 301, p.k = 77;
  p.a_row = p.b_row = 80, p.d_row = 304;
  p.a_batch = p.b_batch = 80 * 301, p.d_batch = 304 * 301;
  p.alpha = 1;
  p.dtype = erlangen::kernels::DType::bfloat16;
  const auto takes = [](const cuda::SymmetricProduct& product) {
    return cuda::symmetric_product_sm90_supports(product);
  };
  EXPECT_TRUE(takes(p));
  auto q = p;
  q.a_row = 77;
  EXPECT_FALSE(takes(q));
  q = p;
  q.a = pointer((1 << 20) + 8);
  EXPECT_FALSE(takes(q));
  q = p;
  q.a_batch = 0;  // TMA has no stride of 0
  EXPECT_FALSE(takes(q));
  q.batch = 1;
  EXPECT_TRUE(takes(q));
  q = p;
  q.beta = 1;  // C is null
  EXPECT_FALSE(takes(q));
  q.c = pointer(1 << 25), q.c_row = 304, q.c_batch = 304 * 301;
  EXPECT_TRUE(takes(q));
  q.dtype = erlangen::kernels::DType::float32;
  EXPECT_FALSE(takes(q));
  q = p;
  q.k = 0;
  EXPECT_FALSE(takes(q));
#ifdef ERLANGEN_SM90
  EXPECT_EQ(cuda::symmetric_product_sm90_workspace(p), 0u);
  q = p;
  q.n = 1024, q.k = 151936, q.a_row = q.b_row = 151936, q.d_row = 1024;
  q.a_batch = q.b_batch = 151936 * 1024, q.d_batch = 1024 * 1024;
  EXPECT_GT(cuda::symmetric_product_sm90_workspace(q), 0u);
  // Refused before anything is launched.
  EXPECT_EQ(cuda::symmetric_product_sm90(q, nullptr, nullptr), cudaErrorInvalidValue);
  q = p;
  q.d = pointer((1 << 20) + 32);
  EXPECT_EQ(cuda::symmetric_product_sm90(q, nullptr, nullptr), cudaErrorInvalidValue);
#endif
}
#endif

}  // namespace
