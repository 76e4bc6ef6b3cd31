// Which thread of the row-norm kernels works on which row and column. Plain index arithmetic,
// compiled for the device and for the host, where a test enumerates it.
//
// The rows of up to kTensorsPerLaunch tensors are numbered through. A worker (a warp or a block)
// takes row w, w + W, w + 2W, ... of W workers, so that neighbours read neighbouring rows, and
// finds a row's tensor by walking the table forward. Within a row, thread t of T takes the packs t,
// t + T, t + 2T, ... of `width` columns each.

#pragma once

#include <cstdint>

#include "../row_norm.h"
#include "vectors.h"

namespace erlangen::kernels::cuda {

// Table and options travel as kernel arguments, of which every driver takes 4 KB.
constexpr int kArgumentBytes = 4096;
constexpr int kTensorsPerLaunch = (kArgumentBytes - sizeof(RowNormOptions) - sizeof(int64_t)) /
                                  (sizeof(RowNormTensor) + sizeof(int64_t));

struct RowTable {
  RowNormTensor tensors[kTensorsPerLaunch];
  int64_t ends[kTensorsPerLaunch];  // rows up to and including this tensor
  int64_t count;
};

static_assert(sizeof(RowTable) + sizeof(RowNormOptions) <= kArgumentBytes, "too many tensors");

ERLANGEN_INLINE int64_t rows_in(const RowTable& table) {
  return table.count == 0 ? 0 : table.ends[table.count - 1];
}

// The tensor that holds a row; `from` is the tensor of any earlier row, 0 at first.
ERLANGEN_INLINE int tensor_of_row(const RowTable& table, int64_t row, int from) {
  while (row >= table.ends[from]) ++from;
  return from;
}

ERLANGEN_INLINE int64_t row_in_tensor(const RowTable& table, int tensor, int64_t row) {
  return row - (table.ends[tensor] - table.tensors[tensor].rows);
}

// First column of a thread's pack number `pack`.
ERLANGEN_INLINE int64_t pack_column(int64_t pack, int thread, int threads, int width) {
  return (pack * threads + thread) * width;
}

// Whether packs of columns are whole and start at multiples of 16 bytes in all three buffers.
inline bool takes_vectors(const RowNormTensor& tensor, const RowNormOptions& options,
                          int param_bytes, int momentum_bytes) {
  const auto steps = [&](const RowStrides& strides, int64_t unit) {
    return (tensor.inner == 1 || strides.row % unit == 0) &&
           (tensor.rows <= tensor.inner || strides.outer % unit == 0) &&
           (options.segments == 1 || strides.segment % unit == 0);
  };
  const auto aligned = [&](const void* data, const RowStrides& strides, int bytes) {
    return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0 &&
           steps(strides, kVectorBytes / bytes);
  };
  // Four elements share the words of one counter.
  const bool whole_noise = !options.stochastic_rounding ||
                           (tensor.element_offset % 4 == 0 && steps(tensor.element_strides, 4));
  return options.cols / options.segments % pack_width(param_bytes, momentum_bytes) == 0 &&
         aligned(tensor.param, tensor.param_strides, param_bytes) &&
         aligned(tensor.grad, tensor.grad_strides, param_bytes) &&
         aligned(tensor.momentum, tensor.momentum_strides, momentum_bytes) && whole_noise;
}

// Fills the table with the next tensors, from index `begin` on, that take vectors or that do not.
// Returns the index to go on from.
inline int64_t fill_table(const RowNormTensor* tensors, int64_t count, int64_t begin, bool vectors,
                          const RowNormOptions& options, int param_bytes, int momentum_bytes,
                          RowTable* table) {
  table->count = 0;
  int64_t i = begin;
  for (; i < count && table->count < kTensorsPerLaunch; ++i) {
    const RowNormTensor& tensor = tensors[i];
    if (tensor.rows == 0) continue;
    if (takes_vectors(tensor, options, param_bytes, momentum_bytes) != vectors) continue;
    const int64_t before = rows_in(*table);
    table->tensors[table->count] = tensor;
    table->ends[table->count] = before + tensor.rows;
    ++table->count;
  }
  return i;
}

}  // namespace erlangen::kernels::cuda
