// What surrounds the polar iteration in a step: momentum and normalisation before it, the
// parameter's update after it, for a batch of logical matrices.
//
//   m <- beta * m + (1 - beta) * g         g the gradient, its negative when maximizing
//   z  = m, or beta * m + (1 - beta) * g   for Nesterov, with the new m
//   c  = z * 2^-e, rounded                 to the type of the iteration's products
//   x  = c / max(||c||_F, eps * 2^-e)      0 for a matrix of zeros; rounded once more
//   ... the iteration makes x the polar factor, in place; or, where x is `unscaled` and z itself,
//   other operations make it what the rule asks for
//   p <- (1 - lr * weight_decay) * p - lr * factor * (scale * x)
//
// e is the exponent that brings the matrix's largest magnitude to [1/2, 1), so that neither the
// cast nor the squares overflow or vanish; a power of two, or a sign, that g and m have in common
// changes no bit of x but the sign. The norm is that of the matrix as cast: rounding could
// otherwise push a singular value over the polynomials' limit.
//
// This file holds what the CPU and the CUDA kernels share: the arguments and what follows from
// them; the formulas of momentum and parameter stand in norm_step.h. All arithmetic is in float,
// for float64 parameters in double. Momentum and parameter are rounded once each; x comes from the
// momentum before it is rounded. csrc/polar.cpp and csrc/reference.cpp are the reference.

#pragma once

#include <cmath>
#include <cstdint>

#include "norm_step.h"
#include "row_strides.h"
#include "types.h"

namespace erlangen::kernels {

// One parameter: a stack of equal matrices, or one section of each. The buffers must not overlap.
struct PolarTensor {
  void* param;
  const void* grad;
  void* momentum;
  int64_t first;  // number of its first matrix in the batch
  double lr;
  const float* lr_pointer;  // where not null, lr is read from there, at run time
  double weight_decay;
  const float* weight_decay_pointer;  // as lr_pointer
  double factor;                      // of the update, not of the decay: update_scale
  int64_t position;                   // of the parameter among all: keys its rounding noise,
  int64_t step;                       // with the number of this step, from 1
  const float* step_pointer;          // where not null, the step is read from there
};

// What all tensors of one call have in common.
struct PolarUpdateOptions {
  int64_t matrices;  // of each tensor
  int64_t rows;      // of each matrix, as it lies in memory: columns are contiguous
  int64_t cols;
  int64_t segments;          // contiguous runs of a row: 1 or 2
  bool transposed;           // whether x holds the columns as its rows
  RowStrides param_strides;  // `outer` is from matrix to matrix
  RowStrides grad_strides;
  RowStrides momentum_strides;
  RowStrides element_strides;  // in the contiguous parameter: an element's place keys its noise
  int64_t element_offset;
  DType dtype;           // of parameter and gradient
  DType momentum_dtype;  // float64 for float64 parameters, else float32 or bfloat16
  DType product_dtype;   // of x; float64 for float64 parameters only
  double momentum;       // beta
  bool nesterov;
  bool maximize;
  bool cautious;             // decays only where parameter * update > 0, by their signs
  bool stochastic_rounding;  // of bfloat16 parameters; without effect on others
  uint64_t seed;
  bool unscaled;            // x is z itself, in the compute type
  double eps;               // least norm that is divided by
  double scale;             // of the update, by shape
  const float* found_inf;   // where not null and *found_inf is not 0, nothing is changed
  const float* grad_scale;  // where not null, the gradient is divided by *grad_scale
  void* x;                  // the batch: k x l matrices with contiguous rows
  int64_t x_row;            // from row to row, in elements
  int64_t x_matrix;         // from matrix to matrix
};

inline bool polar_update_supports(const PolarUpdateOptions& options) {
  return norm_step::types_fit(options) &&
         (options.product_dtype != DType::float64 || options.dtype == DType::float64) &&
         (!options.unscaled ||
          options.product_dtype ==
              (options.dtype == DType::float64 ? DType::float64 : DType::float32));
}

namespace polar_update {

using norm_step::lost;
using norm_step::lr;
using norm_step::overflowed;
using norm_step::rounding_noise;
using norm_step::scalars;

// Whether the momentum as stored is z.
ERLANGEN_INLINE bool stores_direction(const PolarUpdateOptions& options) {
  return !options.nesterov && options.momentum_dtype != DType::bfloat16;
}

ERLANGEN_INLINE int64_t x_rows(const PolarUpdateOptions& options) {
  return options.transposed ? options.cols : options.rows;
}
ERLANGEN_INLINE int64_t x_cols(const PolarUpdateOptions& options) {
  return options.transposed ? options.rows : options.cols;
}

// 2^-e of a matrix whose largest magnitude has this key (norm_step.h); 1 where x is unscaled.
template <typename Compute>
ERLANGEN_INLINE void prescale(const PolarUpdateOptions& options, int32_t key, Compute* scale) {
  if (options.unscaled) {
    *scale = 1;
  } else {
    norm_step::prescale(key, scale, -1);
  }
}

// What the cast matrix is multiplied by, from the sum of its squares and its prescale. Asked of the
// norm, not of the maximum: a matrix of NaN is no matrix of zeros.
template <typename Compute>
ERLANGEN_INLINE Compute reciprocal_norm(double squares, Compute prescale, double eps) {
  Compute norm = static_cast<Compute>(std::sqrt(squares));
  if (eps > 0) {
    const Compute least = prescale * static_cast<Compute>(eps);
    norm = norm < least ? least : norm;
  }
  return norm == 0 ? Compute(0) : 1 / norm;
}

// lr * factor is what the scaled x is multiplied by.
ERLANGEN_INLINE double step_size(const PolarTensor& tensor) { return lr(tensor) * tensor.factor; }

}  // namespace polar_update
}  // namespace erlangen::kernels
