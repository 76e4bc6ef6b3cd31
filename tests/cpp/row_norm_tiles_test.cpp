// The division of work of the CUDA row-norm kernel, enumerated on the host.

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/row_norm_tiles.h"

namespace {

using erlangen::kernels::RowNormOptions;
using erlangen::kernels::RowNormTensor;
namespace cuda = erlangen::kernels::cuda;

RowNormOptions options_of(int64_t cols) {
  RowNormOptions options = {};
  options.cols = cols;
  options.segments = 1;
  return options;
}

TEST(RowNormTiles, EachRowOnce) {
  std::vector<RowNormTensor> tensors(130);
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i] = {};
    tensors[i].rows = static_cast<int64_t>(i * 7 % 12);  // 0 among them
    tensors[i].inner = tensors[i].rows;
    tensors[i].param_strides.row = tensors[i].grad_strides.row = 64;
    tensors[i].momentum_strides.row = 64;
    if (i % 5 == 3) tensors[i].grad = reinterpret_cast<const void*>(4);  // not for vectors
  }
  for (const int64_t workers : {1, 2, 7, 132, 1000}) {
    std::vector<std::vector<int>> visits(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) visits[i].assign(tensors[i].rows, 0);
    std::vector<size_t> places;  // of a table's tensors, in the order of the list
    for (const bool vectors : {true, false}) {
      size_t place = 0;
      for (int64_t begin = 0; begin < static_cast<int64_t>(tensors.size());) {
        cuda::RowTable table;
        begin = cuda::fill_table(tensors.data(), tensors.size(), begin, vectors, options_of(64), 4,
                                 4, &table);
        places.clear();
        for (; place < static_cast<size_t>(begin); ++place) {
          const bool here = cuda::takes_vectors(tensors[place], options_of(64), 4, 4) == vectors;
          if (here && tensors[place].rows > 0) places.push_back(place);
        }
        ASSERT_EQ(static_cast<int64_t>(places.size()), table.count);
        ASSERT_LE(table.count, cuda::kTensorsPerLaunch);
        for (int64_t worker = 0; worker < workers; ++worker) {
          int tensor = 0;
          for (int64_t row = worker; row < cuda::rows_in(table); row += workers) {
            tensor = cuda::tensor_of_row(table, row, tensor);
            ++visits.at(places.at(tensor)).at(cuda::row_in_tensor(table, tensor, row));
          }
        }
      }
    }
    for (const auto& rows : visits) {
      for (const int count : rows) ASSERT_EQ(count, 1) << workers << " workers";
    }
  }
}

TEST(RowNormTiles, EachColumnOnce) {
  for (const int threads : {32, 128, 512}) {
    for (const int width : {1, 2, 4, 8}) {
      const int64_t cols = 3 * threads * width + 5 * width;
      std::vector<int> visits(cols, 0);
      for (int thread = 0; thread < threads; ++thread) {
        for (int64_t pack = 0; cuda::pack_column(pack, thread, threads, width) < cols; ++pack) {
          const int64_t c = cuda::pack_column(pack, thread, threads, width);
          for (int i = 0; i < width; ++i) ++visits.at(c + i);
        }
      }
      for (const int count : visits) ASSERT_EQ(count, 1);
    }
  }
}

TEST(RowNormTiles, VectorsNeedAlignment) {
  const auto pointer = [](uintptr_t address) { return reinterpret_cast<void*>(address); };
  RowNormTensor even = {};
  even.param = pointer(32);
  even.grad = pointer(64);
  even.momentum = pointer(96);
  even.rows = even.inner = 4;
  for (auto strides : {&RowNormTensor::param_strides, &RowNormTensor::grad_strides,
                       &RowNormTensor::momentum_strides, &RowNormTensor::element_strides}) {
    even.*strides = {65, 64, 65};  // one block, one run: only the stride of rows counts
  }
  EXPECT_TRUE(cuda::takes_vectors(even, options_of(64), 4, 4));
  EXPECT_TRUE(cuda::takes_vectors(even, options_of(64), 2, 4));
  EXPECT_FALSE(cuda::takes_vectors(even, options_of(63), 4, 4));
  EXPECT_FALSE(cuda::takes_vectors(even, options_of(60), 2, 4));  // eight columns a pack
  RowNormTensor odd = even;
  odd.grad_strides.row = 65;
  EXPECT_FALSE(cuda::takes_vectors(odd, options_of(64), 4, 4));
  odd.rows = odd.inner = 1;
  EXPECT_TRUE(cuda::takes_vectors(odd, options_of(64), 4, 4));
  odd = even;
  odd.param = pointer(36);
  EXPECT_FALSE(cuda::takes_vectors(odd, options_of(64), 4, 4));
  odd = even;
  odd.inner = 2;  // two blocks
  EXPECT_FALSE(cuda::takes_vectors(odd, options_of(64), 4, 4));
  for (auto strides : {&RowNormTensor::param_strides, &RowNormTensor::grad_strides,
                       &RowNormTensor::momentum_strides}) {
    (odd.*strides).outer = 128;
  }
  EXPECT_TRUE(cuda::takes_vectors(odd, options_of(64), 4, 4));
  RowNormOptions pairs = options_of(64);
  pairs.segments = 2;
  EXPECT_FALSE(cuda::takes_vectors(odd, pairs, 4, 4));
  for (auto strides : {&RowNormTensor::param_strides, &RowNormTensor::grad_strides,
                       &RowNormTensor::momentum_strides}) {
    (odd.*strides).segment = 256;
  }
  EXPECT_TRUE(cuda::takes_vectors(odd, pairs, 4, 4));
  pairs.cols = 36;  // whole packs, but not the halves
  EXPECT_FALSE(cuda::takes_vectors(odd, pairs, 4, 4));
  RowNormOptions rounding = options_of(64);
  rounding.stochastic_rounding = true;
  EXPECT_TRUE(cuda::takes_vectors(even, rounding, 2, 4));
  even.element_offset = 2;  // a counter's words would be two packs'
  EXPECT_FALSE(cuda::takes_vectors(even, rounding, 2, 4));
}

}  // namespace
