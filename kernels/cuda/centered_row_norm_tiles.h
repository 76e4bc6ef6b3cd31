// Which block of the centered row-norm kernels works on which matrix, rows and columns. Plain index
// arithmetic, compiled for the device and for the host, where a test enumerates it.
//
// The chunks of all matrices of up to kCenteredTensorsPerLaunch tensors are numbered through. Items
// of work are (chunk, tile of columns), the tile running fastest; in the second pass chunks.

#pragma once

#include <cstdint>

#include "../centered_row_norm.h"
#include "row_norm_tiles.h"

namespace erlangen::kernels::cuda {

constexpr int kCenteredTensorsPerLaunch =
    (kArgumentBytes - sizeof(RowNormOptions) - sizeof(int64_t)) /
    (sizeof(RowNormTensor) + sizeof(void*) + sizeof(int64_t));

struct CenteredTable {
  RowNormTensor tensors[kCenteredTensorsPerLaunch];
  void* scratch[kCenteredTensorsPerLaunch];
  int64_t matrices[kCenteredTensorsPerLaunch];
  int64_t count;
};
static_assert(sizeof(CenteredTable) + sizeof(RowNormOptions) <= kArgumentBytes, "too many tensors");

constexpr int64_t kAllRows = int64_t{1} << 62;  // the chunk that is a whole matrix

template <int64_t kRows>
ERLANGEN_INLINE int64_t chunks_of_tensor(const CenteredTable& table, int tensor) {
  return table.matrices[tensor] * centered::chunks_of(table.tensors[tensor].inner, kRows);
}

template <int64_t kRows>
ERLANGEN_INLINE int64_t chunks_in(const CenteredTable& table) {
  int64_t chunks = 0;
  for (int t = 0; t < table.count; ++t) chunks += chunks_of_tensor<kRows>(table, t);
  return chunks;
}

struct ChunkOfTable {
  int tensor;
  int64_t matrix;      // of the tensor
  int64_t chunk;       // of the matrix
  int64_t begin, end;  // rows of the matrix
};
template <int64_t kRows>
ERLANGEN_INLINE ChunkOfTable chunk_of(const CenteredTable& table, int64_t index) {
  ChunkOfTable result;
  result.tensor = 0;
  for (;; ++result.tensor) {
    const int64_t chunks = chunks_of_tensor<kRows>(table, result.tensor);
    if (index < chunks) break;
    index -= chunks;
  }
  const int64_t rows = table.tensors[result.tensor].inner;
  const int64_t chunks = centered::chunks_of(rows, kRows);
  result.matrix = index / chunks;
  result.chunk = index - result.matrix * chunks;
  result.begin = result.chunk * kRows;
  result.end = rows - result.begin < kRows ? rows : result.begin + kRows;
  return result;
}

// Fills the table with the next tensors, from index `begin` on, that take vectors or that do not;
// `scratch` is that of tensor `begin` and moves on. Returns the index to go on from.
inline int64_t fill_table(const RowNormTensor* tensors, int64_t count, int64_t begin, bool vectors,
                          const RowNormOptions& options, int param_bytes, int momentum_bytes,
                          char** scratch, CenteredTable* table) {
  table->count = 0;
  int64_t i = begin;
  for (; i < count && table->count < kCenteredTensorsPerLaunch; ++i) {
    const RowNormTensor& tensor = tensors[i];
    char* own = *scratch;
    *scratch += centered_scratch_bytes(tensor, options);
    if (tensor.rows == 0) continue;
    if (takes_vectors(tensor, options, param_bytes, momentum_bytes) != vectors) continue;
    table->tensors[table->count] = tensor;
    table->scratch[table->count] = own;
    table->matrices[table->count] = centered::matrices_of(tensor);
    ++table->count;
  }
  return i;
}

}  // namespace erlangen::kernels::cuda
