// The division of work of the CUDA column-norm kernels, enumerated on the host.

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "column_norm_oracle.h"
#include "kernels/cuda/column_norm_tiles.h"

namespace {

using namespace erlangen::testing;
namespace cuda = erlangen::kernels::cuda;

TEST(ColumnNormTiles, EachElementOnce) {
  const int64_t stacks[] = {2, 0, 1, 3};
  for (const int width : {1, 4, 8}) {
    for (const int64_t rows : {1, 63, 64, 65, 200}) {
      for (const int64_t packs : {1, 31, 32, 33, 70}) {
        const ColumnNormOptions options = column_options(rows, packs * width);
        std::vector<ColumnNormTensor> tensors;
        for (const int64_t matrices : stacks) {
          tensors.push_back({});
          tensors.back().matrices = matrices;
          tensors.back().param_stride = tensors.back().grad_stride =
              tensors.back().momentum_stride = 4 * options.cols;
          tensors.back().param_matrix_stride = tensors.back().grad_matrix_stride =
              tensors.back().momentum_matrix_stride = 4 * options.cols * rows;
        }
        cuda::ColumnTable table;
        // Bytes of a type that makes packs of this width.
        const int bytes = cuda::kVectorBytes / width;
        EXPECT_EQ(cuda::fill_table(tensors.data(), 4, 0, true, options, bytes, bytes, &table), 4);
        ASSERT_EQ(table.count, 3);
        ASSERT_EQ(cuda::matrices_in(table), 6);
        const int64_t tiles = 6 * cuda::chunks_of(options) * cuda::tiles_across(options, width);
        for (const int64_t blocks : {1, 5, 132}) {
          std::vector<int> visits(6 * rows * packs, 0);
          for (int64_t block = 0; block < blocks; ++block) {
            int tensor = 0;
            for (int64_t t = block; t < tiles; t += blocks) {
              const cuda::ColumnTile tile = cuda::column_tile(options, t, width);
              tensor = cuda::tensor_of_matrix(table, tile.matrix, tensor);
              const int64_t in_tensor = cuda::matrix_in_tensor(table, tensor, tile.matrix);
              ASSERT_GE(in_tensor, 0);
              ASSERT_LT(in_tensor, table.tensors[tensor].matrices);
              for (int64_t r = tile.chunk * cuda::kChunkRows;
                   r < (tile.chunk + 1) * cuda::kChunkRows && r < rows; ++r) {
                for (int lane = 0; lane < cuda::kTilePacks; ++lane) {
                  const int64_t pack = tile.col / width + lane;
                  if (pack < packs) ++visits.at((tile.matrix * rows + r) * packs + pack);
                }
              }
            }
          }
          for (const int count : visits) ASSERT_EQ(count, 1);
        }
      }
    }
  }
}

TEST(ColumnNormTiles, VectorsNeedAlignment) {
  const auto pointer = [](uintptr_t address) { return reinterpret_cast<void*>(address); };
  ColumnNormTensor even = {};
  even.param = pointer(32);
  even.grad = pointer(64);
  even.momentum = pointer(96);
  even.matrices = 2;
  even.param_stride = even.grad_stride = even.momentum_stride = 64;
  even.param_matrix_stride = even.grad_matrix_stride = even.momentum_matrix_stride = 640;
  const auto takes = [](const ColumnNormTensor& tensor, int64_t cols, int param_bytes) {
    return cuda::takes_vectors(tensor, column_options(4, cols), param_bytes, 4);
  };
  EXPECT_TRUE(takes(even, 64, 4));
  EXPECT_TRUE(takes(even, 64, 2));
  EXPECT_FALSE(takes(even, 63, 4));
  EXPECT_FALSE(takes(even, 60, 2));  // eight columns a pack
  ColumnNormTensor odd = even;
  odd.grad_stride = 65;
  EXPECT_FALSE(takes(odd, 64, 4));
  odd = even;
  odd.param_matrix_stride = 641;
  EXPECT_FALSE(takes(odd, 64, 4));
  odd.matrices = 1;
  EXPECT_TRUE(takes(odd, 64, 4));
  odd = even;
  odd.momentum = pointer(100);
  EXPECT_FALSE(takes(odd, 64, 4));
}

}  // namespace
