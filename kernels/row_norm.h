// The row-norm step: every row of a weight moves by a vector of fixed length.
//
//   m <- beta * m + (1 - beta) * g         g the gradient, its negative when maximizing
//   x  = m, or beta * m + (1 - beta) * g   for Nesterov, with the new m
//   u  = x / ||x||_2                       0 for a row of zeros; no eps
//   p <- decay * p - step_size * u
//
// Source: the row-norm rule of Lau & Su, "A Symmetry-Compatible Principle for Optimizer Design",
// arXiv 2605.18106, with the eps of its norm replaced by a scale: x is first multiplied by a power
// of two that brings the row's largest magnitude to [1, 2), so that the squares neither overflow
// nor vanish, and g, 2^k g and -g give the same direction to the last bit.
//
// This file holds the arguments that the CPU and the CUDA kernel share; the scalar formulas stand
// in norm_step.h. All arithmetic is in float, for float64 parameters in double. Momentum and
// parameter are rounded once each; the direction comes from the momentum before it is rounded.

#pragma once

#include <cstdint>

#include "norm_step.h"
#include "types.h"

namespace erlangen::kernels {

// One parameter, rows x cols. The elements of a row are contiguous; strides are counted in
// elements from row to row. The three buffers must not overlap.
struct RowNormTensor {
  void* param;
  const void* grad;
  void* momentum;
  int64_t rows;
  int64_t param_stride;
  int64_t grad_stride;
  int64_t momentum_stride;
  double decay;      // 1 - lr * weight_decay
  double step_size;  // lr * lr_scale * factor by shape: the length of a row's update
};

// What all tensors of one call have in common.
struct RowNormOptions {
  int64_t cols;
  DType dtype;           // of parameter and gradient
  DType momentum_dtype;  // float64 for float64 parameters, else float32 or bfloat16
  double momentum;       // beta
  bool nesterov;
  bool maximize;
  bool gradient_support;  // rows with an all-zero gradient keep their parameter; momentum decays
};

// Whether the kernels take this combination of types.
inline bool row_norm_supports(const RowNormOptions& options) {
  if (options.dtype == DType::float64) return options.momentum_dtype == DType::float64;
  return options.momentum_dtype == DType::float32 || options.momentum_dtype == DType::bfloat16;
}

namespace row_norm {

using norm_step::blend;
using norm_step::magnitude_key;
using norm_step::prescale;
using norm_step::Scalars;
using norm_step::updated;

template <typename Compute>
ERLANGEN_INLINE Scalars<Compute> scalars(const RowNormOptions& options) {
  return norm_step::scalars<Compute>(options.momentum, options.maximize);
}

}  // namespace row_norm
}  // namespace erlangen::kernels
