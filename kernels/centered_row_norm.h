// The centered row-norm step: as kernels/row_norm.h, between two projections that take out what all
// rows of a matrix share.
//
//   x   the direction of kernels/row_norm.h, from momentum and gradient
//   d_i = x_i - mean of x over the rows
//   u_i = d_i / ||d_i||_2                 0 where d_i is
//   y_i = u_i - mean of u over the rows
//   p  <- (1 - lr * weight_decay) * p - lr * factor * y
//
// Source: the centered row-norm rule of Lau & Su, "A Symmetry-Compatible Principle for Optimizer
// Design", arXiv 2605.18106. Lengths are those of d itself, never ||x||^2 - 2 x . mean +
// ||mean||^2, which cancels.
//
// Three passes, for the means are of whole columns:
//
//   1. sums    reads g and m, writes m; columns are summed over chunks of 64 rows
//   2. units   reads m; scale and length of each row, columns of u are summed over the same chunks,
//              on CUDA over chunks of 16 rows
//   3. update  reads m, reads and writes p
//
// and after the first two the chunks' sums become the mean. That is 28 bytes an element in float32,
// and for the sums 0.5, on CUDA 0.75.
// Where momentum is stored in fewer bits than are computed with, it is written in the third pass,
// and each pass computes x from the old one; Nesterov's x needs the gradient in each pass as well.
//
// Sums over columns are in double. On CUDA those of u are rounded, as u itself is, after every
// eight rows, or four of more than 2048 columns. Chunks depend on the rows alone and sums on the
// chunks alone, not on threads or multiprocessors. Sums of x, which are floats, are nearly exact,
// so that rows which are equal have a mean which is equal too, and no update.
//
// This file holds what the CPU and the CUDA kernel share. Blocks of `inner` rows are the matrices,
// each centered by itself. Rows have one segment; there is no cautious decay.

#pragma once

#include <cstdint>

#include "row_norm.h"

namespace erlangen::kernels {

namespace centered {

constexpr int64_t kChunkRows = 64;
// Of the second pass on CUDA, where a block takes whole rows: few, so that a matrix of 4096 rows
// has work for 256 blocks.
constexpr int64_t kUnitRows = 16;

ERLANGEN_INLINE int64_t chunks_of(int64_t matrix_rows, int64_t chunk_rows = kChunkRows) {
  return (matrix_rows + chunk_rows - 1) / chunk_rows;
}
ERLANGEN_INLINE int64_t matrices_of(const RowNormTensor& tensor) {
  return tensor.rows == 0 ? 0 : tensor.rows / tensor.inner;
}

// Prescaled by `scale`, d has length 1 / inverse_length.
template <typename Compute>
struct RowScale {
  Compute scale;
  Compute inverse_length;  // 0 for a row of zeros
  Compute moves;           // 1, or 0 where the row keeps its parameter
};

template <typename Compute>
ERLANGEN_INLINE Compute unit(Compute d, const RowScale<Compute>& row) {
  return d * row.scale * row.inverse_length;
}

// A matrix's part of the scratch memory.
template <typename Compute>
struct Scratch {
  double* sums;        // [chunk][column]
  Compute* unit_sums;  // the same of the chunks of kUnitRows, in the same memory
  Compute* mean;
  Compute* unit_mean;
  RowScale<Compute>* rows;
};

// Columns of a row in the scratch memory: whole 128 bytes, whatever the type.
ERLANGEN_INLINE int64_t padded(int64_t cols) { return (cols + 31) / 32 * 32; }

ERLANGEN_INLINE int64_t sums_bytes(int64_t matrix_rows, int64_t cols, int64_t compute_bytes) {
  const int64_t sums = chunks_of(matrix_rows) * static_cast<int64_t>(sizeof(double));
  const int64_t unit_sums = chunks_of(matrix_rows, kUnitRows) * compute_bytes;
  return (sums > unit_sums ? sums : unit_sums) * padded(cols);
}
ERLANGEN_INLINE int64_t matrix_bytes(int64_t matrix_rows, int64_t cols, int64_t compute_bytes) {
  return sums_bytes(matrix_rows, cols, compute_bytes) +
         (2 * padded(cols) + padded(3 * matrix_rows)) * compute_bytes;
}

template <typename Compute>
ERLANGEN_INLINE Scratch<Compute> scratch_of(void* tensor_scratch, const RowNormTensor& tensor,
                                            const RowNormOptions& options, int64_t matrix) {
  char* base = static_cast<char*>(tensor_scratch) +
               matrix * matrix_bytes(tensor.inner, options.cols, sizeof(Compute));
  Scratch<Compute> s;
  s.sums = reinterpret_cast<double*>(base);
  s.unit_sums = reinterpret_cast<Compute*>(base);
  s.mean =
      reinterpret_cast<Compute*>(base + sums_bytes(tensor.inner, options.cols, sizeof(Compute)));
  s.unit_mean = s.mean + padded(options.cols);
  s.rows = reinterpret_cast<RowScale<Compute>*>(s.unit_mean + padded(options.cols));
  return s;
}

}  // namespace centered

// Scratch memory that a tensor needs, to be aligned to 128 bytes; a multiple of that. What it holds
// before is of no account.
inline int64_t centered_scratch_bytes(const RowNormTensor& tensor, const RowNormOptions& options) {
  const int64_t compute_bytes = options.dtype == DType::float64 ? 8 : 4;
  return centered::matrices_of(tensor) *
         centered::matrix_bytes(tensor.inner, options.cols, compute_bytes);
}

// Whether the kernels take these options.
inline bool centered_row_norm_supports(const RowNormOptions& options) {
  return row_norm_supports(options) && options.segments == 1 && !options.cautious;
}

}  // namespace erlangen::kernels
