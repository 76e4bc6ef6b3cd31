// The column-norm step: every unit of a weight moves by a vector of fixed length, where a unit is a
// column of the stored tensor or a pair of columns, so that its elements lie in different rows of
// memory.
//
//   m <- beta * m + (1 - beta) * g         g the gradient over *grad_scale, its negative when
//   x  = m, or beta * m + (1 - beta) * g   maximizing; Nesterov: the second, with the new m
//   u  = x / ||x||_2                       over the unit; 0 for a unit of zeros; no eps
//   p <- (1 - lr * weight_decay) * p - lr * factor * u
//
// Source: the norm rules of Lau & Su, "A Symmetry-Compatible Principle for Optimizer Design", arXiv
// 2605.18106, scaled by powers of two as in row_norm.h. A unit's largest magnitude is not known
// before all its rows are read: a sum of squares is kept under the scale of what it has seen and
// rescaled, exactly, as that grows.
//
// The step takes two passes over memory. The first reads g and m and leaves, for each column and
// each chunk of rows, a sum of squares and the key of its scale; these are combined in a fixed
// order. The second reads m and p and writes p: 24 bytes an element in float32. The first pass
// writes m where m as stored is the direction. Where it is not (Nesterov, or a momentum that is
// rounded, for the direction comes from the momentum before it is rounded) the second pass reads g
// and the old m once more and writes m then: 28 bytes.
//
// This file holds the arguments that the CPU and the CUDA kernel share, and how sums combine; the
// scalar formulas stand in norm_step.h. All arithmetic is in float, for float64 parameters in
// double. Momentum and parameter are rounded once each.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "norm_step.h"
#include "types.h"

namespace erlangen::kernels {

// A stack of matrices of one parameter. The elements of a row are contiguous; strides are counted
// in elements, from row to row and from matrix to matrix. The three buffers must not overlap.
struct ColumnNormTensor {
  void* param;
  const void* grad;
  void* momentum;
  int64_t matrices;
  int64_t param_stride;
  int64_t grad_stride;
  int64_t momentum_stride;
  int64_t param_matrix_stride;
  int64_t grad_matrix_stride;
  int64_t momentum_matrix_stride;
  double lr;
  const float* lr_pointer;  // null: lr is used
  double weight_decay;
  const float* weight_decay_pointer;  // null: weight_decay is used
  double factor;                      // lr * factor is the length of a unit's update
};

// Which columns make a unit: each its own, 2i and 2i + 1, or i and cols / 2 + i.
enum class ColumnPairs { none, interleaved, concatenated };

// What all tensors of one call have in common. The pointers, like lr_pointer, are the kernel's:
// host memory for the CPU, device memory for CUDA.
struct ColumnNormOptions {
  int64_t rows;  // of each matrix, as it is stored
  int64_t cols;
  ColumnPairs pairs;
  DType dtype;           // of parameter and gradient
  DType momentum_dtype;  // float64 for float64 parameters, else float32 or bfloat16
  double momentum;       // beta
  bool nesterov;
  bool maximize;
  bool cautious;            // decays only the elements where parameter * update > 0
  const float* found_inf;   // not null, and not 0 there: the step changes nothing
  const float* grad_scale;  // not null: the gradient is divided by it
};

// Whether the kernels take this combination of types and sizes.
inline bool column_norm_supports(const ColumnNormOptions& options) {
  if (options.pairs != ColumnPairs::none && options.cols % 2 != 0) return false;
  return norm_step::types_fit(options);
}

namespace column_norm {

using norm_step::cautiously;
using norm_step::lost;
using norm_step::lr;
using norm_step::overflowed;
using norm_step::scalars;

// Whether the momentum as stored is the direction.
ERLANGEN_INLINE bool stores_direction(const ColumnNormOptions& options) {
  return !options.nesterov && options.momentum_dtype != DType::bfloat16;
}

// The first and the second column of a column's unit; equal where there are no pairs.
ERLANGEN_INLINE int64_t first_of_unit(const ColumnNormOptions& options, int64_t col) {
  const int64_t half = options.cols / 2;
  if (options.pairs == ColumnPairs::interleaved) return col - col % 2;
  return options.pairs == ColumnPairs::concatenated && col >= half ? col - half : col;
}
ERLANGEN_INLINE int64_t second_of_unit(const ColumnNormOptions& options, int64_t first) {
  if (options.pairs == ColumnPairs::interleaved) return first + 1;
  return options.pairs == ColumnPairs::concatenated ? first + options.cols / 2 : first;
}

// The square of 2^-n for n >= 0, or 0 where that is too small beside 1 to matter.
ERLANGEN_INLINE void squared_power(int32_t n, float* result) {
  const int32_t bits = (n < 63 ? 127 - 2 * n : 0) << 23;
  std::memcpy(result, &bits, sizeof(*result));
}
ERLANGEN_INLINE void squared_power(int32_t n, double* result) {
  const int64_t bits = static_cast<int64_t>(n < 511 ? 1023 - 2 * n : 0) << 52;
  std::memcpy(result, &bits, sizeof(*result));
}

// How many powers of two the scale of a key lies below the largest scale.
ERLANGEN_INLINE int32_t powers_down(int32_t key, float) {
  const int32_t exponent = key >> 23;
  return exponent < 253 ? exponent : 253;
}
ERLANGEN_INLINE int32_t powers_down(int32_t key, double) {
  const int32_t exponent = key >> 20;
  return exponent < 2045 ? exponent : 2045;
}

// A sum of squares under the scale of the key `from`, under that of the key `to`, which is not
// less.
template <typename Compute>
ERLANGEN_INLINE Compute rescaled(Compute squares, int32_t from, int32_t to) {
  Compute factor;
  squared_power(powers_down(to, Compute()) - powers_down(from, Compute()), &factor);
  return squares * factor;
}

// Where the passes keep what they know of the columns of `matrices` matrices. The memory is the
// caller's and need not be cleared.
template <typename Compute>
struct Scratch {
  Compute* squares;  // [matrices, chunks, cols]
  Compute* scales;   // [matrices, cols]: what brings the unit's largest magnitude to [1, 2)
  Compute* lengths;  // [matrices, cols]: from the scaled direction to the update
  int32_t* keys;     // [matrices, chunks, cols]

  static ERLANGEN_INLINE int64_t bytes(int64_t matrices, int64_t chunks, int64_t cols) {
    constexpr int64_t kPartial = sizeof(Compute) + sizeof(int32_t);
    return matrices * cols * (chunks * kPartial + 2 * static_cast<int64_t>(sizeof(Compute)));
  }
  static ERLANGEN_INLINE Scratch in(void* memory, int64_t matrices, int64_t chunks, int64_t cols) {
    Scratch scratch;
    scratch.squares = static_cast<Compute*>(memory);
    scratch.scales = scratch.squares + matrices * chunks * cols;
    scratch.lengths = scratch.scales + matrices * cols;
    scratch.keys = reinterpret_cast<int32_t*>(scratch.lengths + matrices * cols);
    return scratch;
  }
};

// The factor from the scaled direction to the update. Asked of the sum, not of the maximum: a unit
// of NaN is no unit of zeros.
ERLANGEN_INLINE double update_length(const ColumnNormTensor& tensor, double squares) {
  return squares == 0 ? 0 : lr(tensor) * tensor.factor / std::sqrt(squares);
}

}  // namespace column_norm
}  // namespace erlangen::kernels
