// The division of work of the symmetric-product kernels, enumerated on the host.

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/symmetric_product_tiles.h"

namespace {

using namespace erlangen::kernels::cuda;

TEST(SymmetricProductTiles, EachLowerTileOnce) {
  for (const int64_t across : {1, 2, 3, 4, 7, 16, 33, 86, 150}) {
    for (const int64_t batch : {1, 2, 5, 64}) {
      const int64_t count = batch * lower_tiles(across);
      if (count > 100000) continue;
      for (const int64_t blocks : {1, 8, 132, 264, 5000}) {
        std::vector<int> visits(batch * across * across, 0);
        for (int64_t block = 0; block < blocks; ++block) {
          for (int64_t index = block; index < count; index += blocks) {
            const LowerTile tile = lower_tile(index, across);
            ASSERT_TRUE(0 <= tile.j && tile.j <= tile.i && tile.i < across);
            ASSERT_TRUE(0 <= tile.matrix && tile.matrix < batch);
            ++visits[(tile.matrix * across + tile.i) * across + tile.j];
          }
        }
        for (int64_t i = 0; i < batch * across * across; ++i) {
          const bool lower = i % across <= i / across % across;
          ASSERT_EQ(visits[i], lower ? 1 : 0) << across << " across, " << blocks << " blocks";
        }
      }
    }
  }
}

// Where the root in float is off by more than one, at both ends of every row of tiles.
TEST(SymmetricProductTiles, RootIsPutRight) {
  for (int64_t i = 0; i < 200000; ++i) {
    for (const int64_t j : {int64_t{0}, i}) {
      const LowerTile tile = lower_tile(lower_tiles(i) + j, 200000);
      ASSERT_EQ(tile.matrix, 0);
      ASSERT_EQ(tile.i, i);
      ASSERT_EQ(tile.j, j);
    }
  }
}

// More tiles than 32 bits count.
TEST(SymmetricProductTiles, LargeBatches) {
  const int64_t across = 300, per_matrix = lower_tiles(across), matrix = int64_t{1} << 40;
  const LowerTile tile = lower_tile(matrix * per_matrix + per_matrix - 1, across);
  EXPECT_EQ(tile.matrix, matrix);
  EXPECT_EQ(tile.i, across - 1);
  EXPECT_EQ(tile.j, across - 1);
}

// Each part of each tile once over all blocks, and no two keep their sums in the same place: the
// one that is counted by its number.
TEST(SymmetricProductTiles, EachPartOnce) {
  for (const int64_t across : {1, 2, 7, 16}) {
    for (const int32_t parts : {1, 2, 5, 64}) {
      for (const int64_t batch : {1, 3}) {
        const int64_t tiles = lower_tiles(across), count = batch * parts * tiles;
        for (const int64_t blocks : {1, 108, 5000}) {
          std::vector<int> visits(count, 0);
          for (int64_t block = 0; block < blocks; ++block) {
            for (int64_t index = block; index < count; index += blocks) {
              const auto [tile, part] = tile_part(index, across, parts);
              ASSERT_TRUE(0 <= tile.j && tile.j <= tile.i && tile.i < across);
              ASSERT_TRUE(0 <= part && part < parts);
              ASSERT_TRUE(0 <= tile.matrix && tile.matrix < batch);
              const int64_t place =
                  partial_tile(parts, tiles, tile.matrix, part, lower_tiles(tile.i) + tile.j);
              ASSERT_EQ(place, index);
              ++visits.at(place);
            }
          }
          for (const int times : visits) ASSERT_EQ(times, 1);
        }
      }
    }
  }
}

TEST(SymmetricProductTiles, PartsCoverK) {
  for (const int64_t n : {1, 64, 129, 511, 512, 768, 1024, 2048, 4096, 20000}) {
    for (const int64_t k : {0, 1, 32, 33, 4096, 4097, 20000, 151936, 10000000}) {
      const MmaPlan plan = mma_plan(n, k);
      const auto& [parts, part_steps] = plan.cut;
      const int64_t steps = (k + kMmaDepth - 1) / kMmaDepth;
      EXPECT_GE(parts, 1);
      EXPECT_LE(parts, kMostParts);
      EXPECT_GE(int64_t{parts} * part_steps, steps);
      EXPECT_TRUE(parts == 1 || int64_t{parts - 1} * part_steps < steps);
      EXPECT_GE(plan.across * plan.tile, n);
      if (parts == 1) continue;
      EXPECT_GE(part_steps, kLeastPartSteps);
      EXPECT_LE(4 * partial_tile(parts, lower_tiles(plan.across), 1, 0, 0) * plan.tile * plan.tile,
                kMostPartialBytes);
    }
  }
}

// Few tiles and long sums fill 108 SMs in parts; many tiles do so themselves, and short sums would
// wait longer for the second kernel.
TEST(SymmetricProductTiles, PartsWhereTilesAreFew) {
  EXPECT_EQ(mma_plan(768, 768).cut.parts, 1);
  EXPECT_EQ(mma_plan(768, 2048).cut.parts, 1);
  EXPECT_EQ(mma_plan(768, 8192).cut.parts, 4);     // 21 tiles
  EXPECT_EQ(mma_plan(1024, 151936).cut.parts, 3);  // 36 tiles: 108
  EXPECT_EQ(mma_plan(4096, 4096).cut.parts, 1);
  EXPECT_EQ(mma_plan(8192, 151936).cut.parts, 1);
}

TEST(SymmetricProductTiles, CoverEveryRow) {
  for (const int64_t n : {1, 63, 64, 65, 128, 129}) {
    EXPECT_GE(tiles_of(n, 64) * 64, n);
    EXPECT_LT((tiles_of(n, 64) - 1) * 64, n);
  }
}

}  // namespace
