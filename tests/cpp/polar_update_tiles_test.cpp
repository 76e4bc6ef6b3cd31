// The division of work of the CUDA kernels around the polar iteration, enumerated on the host.

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/polar_update_tiles.h"
#include "polar_update_oracle.h"

namespace {

using namespace erlangen::testing;
namespace cuda = erlangen::kernels::cuda;

// Over all blocks and threads, whatever the number of blocks. A matrix's tiles follow each other:
// their largest magnitudes and squares are looked up by that.
TEST(PolarUpdateTiles, EachElementOnce) {
  for (const int64_t rows : {1, 15, 64, 65, 130}) {
    for (const int64_t cols : {1, 3, 4, 63, 64, 66, 197}) {
      for (const int64_t matrices : {1, 2, 5}) {
        const int64_t per_matrix = cuda::polar_tiles(rows, cols), tiles = matrices * per_matrix;
        for (const int64_t blocks : {1, 7, 132}) {
          std::vector<int> visits(matrices * rows * cols, 0);
          for (int64_t block = 0; block < blocks; ++block) {
            for (int64_t t = block; t < tiles; t += blocks) {
              const cuda::PolarTile tile = cuda::polar_tile(rows, cols, t);
              ASSERT_EQ(tile.matrix, t / per_matrix) << rows << " x " << cols << ", tile " << t;
              for (int thread = 0; thread < cuda::kPolarThreads; ++thread) {
                const int64_t begin = tile.col + thread % cuda::kPolarTilePacks * cuda::kPolarPack;
                for (int pack = 0; pack < cuda::kPolarPacks; ++pack) {
                  const int64_t r =
                      tile.row + thread / cuda::kPolarTilePacks + pack * cuda::kPolarTileStep;
                  for (int64_t c = begin; c < begin + cuda::kPolarPack; ++c) {
                    if (r < rows && c < cols) ++visits.at((tile.matrix * rows + r) * cols + c);
                  }
                }
              }
            }
          }
          for (const int count : visits) {
            ASSERT_EQ(count, 1) << matrices << " of " << rows << " x " << cols;
          }
        }
      }
    }
  }
}

// More tiles than 32 bits count.
TEST(PolarUpdateTiles, LargeBatches) {
  const int64_t rows = 1000, cols = 70, matrix = int64_t{1} << 40;
  const cuda::PolarTile tile =
      cuda::polar_tile(rows, cols, (matrix + 1) * cuda::polar_tiles(rows, cols) - 1);
  EXPECT_EQ(tile.matrix, matrix);
  EXPECT_EQ(tile.row, 960);
  EXPECT_EQ(tile.col, 64);
}

TEST(PolarUpdateTiles, PacksNeedAlignment) {
  PolarUpdateOptions even =
      polar_options(2, 3, 8, {DType::bfloat16, DType::float32, DType::float16});
  for (auto strides : {&PolarUpdateOptions::param_strides, &PolarUpdateOptions::grad_strides,
                       &PolarUpdateOptions::momentum_strides}) {
    (even.*strides).row = 12, (even.*strides).outer = 36;
  }
  EXPECT_TRUE(cuda::packs_fit(even));
  PolarUpdateOptions odd = even;
  odd.cols = 7;
  EXPECT_FALSE(cuda::packs_fit(odd));
  odd = even;
  odd.momentum_strides.outer = 37;
  EXPECT_FALSE(cuda::packs_fit(odd));
  odd.matrices = 1;
  EXPECT_TRUE(cuda::packs_fit(odd));
  odd = even;
  odd.grad_strides.row = 13;
  EXPECT_FALSE(cuda::packs_fit(odd));
  odd.rows = 1;
  EXPECT_TRUE(cuda::packs_fit(odd));
  odd = even;
  odd.segments = 2, odd.param_strides.segment = 6;
  EXPECT_FALSE(cuda::packs_fit(odd));
  odd.param_strides.segment = 8;
  EXPECT_TRUE(cuda::packs_fit(odd));
  odd = even;
  odd.element_offset = 2;  // a counter's words would be two packs', where there is noise
  EXPECT_TRUE(cuda::packs_fit(odd));
  odd.stochastic_rounding = true;
  EXPECT_FALSE(cuda::packs_fit(odd));
}

}  // namespace
