// The row-norm step: every row of a weight moves by a vector of fixed length.
//
//   m <- beta * m + (1 - beta) * g         g the gradient, its negative when maximizing
//   x  = m, or beta * m + (1 - beta) * g   for Nesterov, with the new m
//   u  = x / ||x||_2                       0 for a row of zeros; no eps
//   p <- (1 - lr * weight_decay) * p - lr * factor * u
//
// Source: the row-norm rule of Lau & Su, "A Symmetry-Compatible Principle for Optimizer Design",
// arXiv 2605.18106, with the eps of its norm replaced by a scale: x is first multiplied by a power
// of two that brings the row's largest magnitude to [1, 2), so that the squares neither overflow
// nor vanish, and g, 2^k g and -g give the same direction to the last bit.
//
// This file holds what the CPU and the CUDA kernel share: the arguments and what follows from them;
// the formulas of one element stand in norm_step.h. All arithmetic is in float, for float64
// parameters in double. Momentum and parameter are rounded once each; the direction comes from the
// momentum before it is rounded.

#pragma once

#include <cstdint>

#include "norm_step.h"
#include "philox.h"
#include "row_strides.h"
#include "types.h"

namespace erlangen::kernels {

// One parameter, rows x cols. The three buffers must not overlap.
struct RowNormTensor {
  void* param;
  const void* grad;
  void* momentum;
  int64_t rows;
  int64_t inner;  // rows of a block (one expert of a stack); `rows` where they make one block
  RowStrides param_strides;
  RowStrides grad_strides;
  RowStrides momentum_strides;
  double lr;
  const float* lr_pointer;  // where not null, lr is read from there, at run time
  double weight_decay;
  const float* weight_decay_pointer;  // as lr_pointer
  double factor;  // update_scale * factor by shape: lr * factor is the length of a row's update
  // For stochastic rounding: where the elements lie in the contiguous parameter, and what else keys
  // their noise.
  RowStrides element_strides;
  int64_t element_offset;
  int64_t position;           // of the parameter among all
  int64_t step;               // number of this step, from 1
  const float* step_pointer;  // where not null, the step is read from there
};

// What all tensors of one call have in common.
struct RowNormOptions {
  int64_t cols;
  int64_t segments;      // contiguous runs of a row: 1 or 2
  DType dtype;           // of parameter and gradient
  DType momentum_dtype;  // float64 for float64 parameters, else float32 or bfloat16
  double momentum;       // beta
  bool nesterov;
  bool maximize;
  bool gradient_support;     // rows with an all-zero gradient keep their parameter; momentum decays
  bool cautious;             // decays only where parameter * update > 0, by their signs
  bool stochastic_rounding;  // of bfloat16 parameters; without effect on others
  uint64_t seed;
  const float* found_inf;   // where not null and *found_inf is not 0, nothing is changed
  const float* grad_scale;  // where not null, the gradient is divided by *grad_scale
};

inline bool row_norm_supports(const RowNormOptions& options) {
  return norm_step::types_fit(options);
}

namespace row_norm {

using norm_step::blend;
using norm_step::cautiously;
using norm_step::lost;
using norm_step::lr;
using norm_step::magnitude_key;
using norm_step::overflowed;
using norm_step::prescale;
using norm_step::rounding_noise;
using norm_step::scalars;
using norm_step::Scalars;
using norm_step::updated;

ERLANGEN_INLINE double step_size(const RowNormTensor& tensor) { return lr(tensor) * tensor.factor; }

// A row's block and its place there. Most tensors are one block: no division.
struct RowPlace {
  int64_t outer;
  int64_t inner;
};
ERLANGEN_INLINE RowPlace row_place(const RowNormTensor& tensor, int64_t row) {
  if (row < tensor.inner) return {0, row};
  const int64_t outer = row / tensor.inner;
  return {outer, row - outer * tensor.inner};
}
ERLANGEN_INLINE int64_t row_start(const RowStrides& strides, const RowPlace& place) {
  return place.outer * strides.outer + place.inner * strides.row;
}

}  // namespace row_norm
}  // namespace erlangen::kernels
