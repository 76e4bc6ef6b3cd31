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

TEST(SymmetricProductTiles, CoverEveryRow) {
  for (const int64_t n : {1, 63, 64, 65, 128, 129}) {
    EXPECT_GE(tiles_of(n, 64) * 64, n);
    EXPECT_LT((tiles_of(n, 64) - 1) * 64, n);
  }
}

}  // namespace
