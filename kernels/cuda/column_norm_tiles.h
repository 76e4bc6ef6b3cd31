// Which block and thread of the column-norm kernels works on which rows and columns. Plain index
// arithmetic, compiled for the device and for the host, where a test enumerates it.
//
// The matrices of up to kStacksPerLaunch tensors are numbered through. Each is cut into tiles
// of kChunkRows rows and the columns of 32 packs; tiles are numbered along the columns first, then
// down the chunks, then from matrix to matrix. Block b takes the tiles b, b + B, b + 2B, ... of B
// blocks and finds a tile's tensor by walking the table forward. In a tile, lane l of 32 owns the
// pack l, and warp w of 8 takes the rows w, w + 8, w + 16, ...

#pragma once

#include <cstdint>

#include "../column_norm.h"
#include "vectors.h"

namespace erlangen::kernels::cuda {

constexpr int kStacksPerLaunch = 31;  // as many as fit, see below
constexpr int kChunkRows = 64;        // fixed, so that no sum depends on the device
constexpr int kTilePacks = 32;
constexpr int kTileWarps = 8;

struct ColumnTable {
  ColumnNormTensor tensors[kStacksPerLaunch];
  int64_t ends[kStacksPerLaunch];  // matrices up to and including this tensor
  int64_t count;
};

// Table, options and the scratch's address travel as kernel arguments, of which every driver takes
// 4 KB.
static_assert(sizeof(ColumnTable) + sizeof(ColumnNormOptions) + sizeof(void*) <= 4096,
              "kernel arguments too large");

ERLANGEN_INLINE int64_t matrices_in(const ColumnTable& table) {
  return table.count == 0 ? 0 : table.ends[table.count - 1];
}

ERLANGEN_INLINE int64_t chunks_of(const ColumnNormOptions& options) {
  return (options.rows + kChunkRows - 1) / kChunkRows;
}

// `width` columns a pack.
ERLANGEN_INLINE int64_t tiles_across(const ColumnNormOptions& options, int width) {
  const int64_t cols = kTilePacks * width;
  return (options.cols + cols - 1) / cols;
}

struct ColumnTile {
  int64_t matrix;  // among all of the table
  int64_t chunk;
  int64_t col;  // the first
};

ERLANGEN_INLINE ColumnTile column_tile(const ColumnNormOptions& options, int64_t tile, int width) {
  const int64_t across = tiles_across(options, width);
  const int64_t strip = tile / across;
  const int64_t chunks = chunks_of(options);
  const int64_t matrix = strip / chunks;
  return {matrix, strip - matrix * chunks, (tile - strip * across) * kTilePacks * width};
}

// The tensor that holds a matrix; `from` is the tensor of any earlier matrix, 0 at first.
ERLANGEN_INLINE int tensor_of_matrix(const ColumnTable& table, int64_t matrix, int from) {
  while (matrix >= table.ends[from]) ++from;
  return from;
}

ERLANGEN_INLINE int64_t matrix_in_tensor(const ColumnTable& table, int tensor, int64_t matrix) {
  return matrix - (table.ends[tensor] - table.tensors[tensor].matrices);
}

// Whether every row starts at a multiple of 16 bytes in all three buffers and is whole packs long.
inline bool takes_vectors(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                          int param_bytes, int momentum_bytes) {
  const auto aligned = [&](const void* data, int64_t stride, int64_t matrix_stride, int bytes) {
    return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0 &&
           (options.rows == 1 || stride * bytes % kVectorBytes == 0) &&
           (tensor.matrices == 1 || matrix_stride * bytes % kVectorBytes == 0);
  };
  return options.cols % pack_width(param_bytes, momentum_bytes) == 0 &&
         aligned(tensor.param, tensor.param_stride, tensor.param_matrix_stride, param_bytes) &&
         aligned(tensor.grad, tensor.grad_stride, tensor.grad_matrix_stride, param_bytes) &&
         aligned(tensor.momentum, tensor.momentum_stride, tensor.momentum_matrix_stride,
                 momentum_bytes);
}

// Fills the table with the next tensors, from index `begin` on, that take vectors or that do not.
// Returns the index to go on from.
inline int64_t fill_table(const ColumnNormTensor* tensors, int64_t count, int64_t begin,
                          bool vectors, const ColumnNormOptions& options, int param_bytes,
                          int momentum_bytes, ColumnTable* table) {
  table->count = 0;
  int64_t i = begin;
  for (; i < count && table->count < kStacksPerLaunch; ++i) {
    const ColumnNormTensor& tensor = tensors[i];
    if (tensor.matrices == 0) continue;
    if (takes_vectors(tensor, options, param_bytes, momentum_bytes) != vectors) continue;
    const int64_t before = matrices_in(*table);
    table->tensors[table->count] = tensor;
    table->ends[table->count] = before + tensor.matrices;
    ++table->count;
  }
  return i;
}

}  // namespace erlangen::kernels::cuda
