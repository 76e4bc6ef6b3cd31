// Which block of the centered row-norm kernels works on which matrix, rows and columns. Plain index
// arithmetic, compiled for the device and for the host, where a test enumerates it.
//
// The chunks of all matrices of up to kCenteredTensorsPerLaunch tensors are numbered through, and
// so are their matrices. Items of work are (chunk, tile of columns) or (matrix, tile of columns),
// the tile running fastest.

#pragma once

#include <cstdint>

#include "../centered_row_norm.h"
#include "row_norm_tiles.h"

namespace erlangen::kernels::cuda {

constexpr int kCenteredTensorsPerLaunch =
    (kArgumentBytes - sizeof(RowNormOptions) - sizeof(int64_t)) /
    (sizeof(RowNormTensor) + sizeof(void*) + 2 * sizeof(int64_t));

struct CenteredTable {
  RowNormTensor tensors[kCenteredTensorsPerLaunch];
  void* scratch[kCenteredTensorsPerLaunch];
  int64_t chunk_ends[kCenteredTensorsPerLaunch];  // up to and including this tensor
  int64_t matrix_ends[kCenteredTensorsPerLaunch];
  int64_t count;
};
static_assert(sizeof(CenteredTable) + sizeof(RowNormOptions) <= kArgumentBytes, "too many tensors");

ERLANGEN_INLINE int64_t chunks_in(const CenteredTable& table) {
  return table.count == 0 ? 0 : table.chunk_ends[table.count - 1];
}
ERLANGEN_INLINE int64_t matrices_in(const CenteredTable& table) {
  return table.count == 0 ? 0 : table.matrix_ends[table.count - 1];
}

struct MatrixOfTable {
  int tensor;
  int64_t matrix;  // of the tensor
};
ERLANGEN_INLINE MatrixOfTable matrix_of(const CenteredTable& table, int64_t index) {
  int t = 0;
  while (index >= table.matrix_ends[t]) ++t;
  return {t, t == 0 ? index : index - table.matrix_ends[t - 1]};
}

struct ChunkOfTable {
  int tensor;
  int64_t matrix;      // of the tensor
  int64_t chunk;       // of the matrix
  int64_t begin, end;  // rows of the matrix
};
ERLANGEN_INLINE ChunkOfTable chunk_of(const CenteredTable& table, int64_t index) {
  int t = 0;
  while (index >= table.chunk_ends[t]) ++t;
  const int64_t of_tensor = t == 0 ? index : index - table.chunk_ends[t - 1];
  const int64_t rows = table.tensors[t].inner;
  const int64_t chunks = centered::chunks_of(rows);
  ChunkOfTable result;
  result.tensor = t;
  result.matrix = of_tensor / chunks;
  result.chunk = of_tensor - result.matrix * chunks;
  result.begin = result.chunk * centered::kChunkRows;
  const int64_t end = result.begin + centered::kChunkRows;
  result.end = end < rows ? end : rows;
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
    const int64_t matrices = centered::matrices_of(tensor);
    const int64_t chunks_before = chunks_in(*table), matrices_before = matrices_in(*table);
    table->tensors[table->count] = tensor;
    table->scratch[table->count] = own;
    table->chunk_ends[table->count] = chunks_before + matrices * centered::chunks_of(tensor.inner);
    table->matrix_ends[table->count] = matrices_before + matrices;
    ++table->count;
  }
  return i;
}

}  // namespace erlangen::kernels::cuda
