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
// This file holds what the CPU and the CUDA kernel share: the arguments and the scalar formulas.
// All arithmetic is in float, for float64 parameters in double. Momentum and parameter are rounded
// once each; the direction comes from the momentum before it is rounded.

#pragma once

#include <cstdint>
#include <cstring>

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

// Scalars of the formula in the type that computes.
template <typename Compute>
struct Scalars {
  Compute beta;
  Compute gradient_weight;  // 1 - beta; negative when maximizing
};

template <typename Compute>
ERLANGEN_INLINE Scalars<Compute> scalars(const RowNormOptions& options) {
  const double weight = 1.0 - options.momentum;
  return {static_cast<Compute>(options.momentum),
          static_cast<Compute>(options.maximize ? -weight : weight)};
}

// Both the new momentum and, applied to it once more, Nesterov's direction.
template <typename Compute>
ERLANGEN_INLINE Compute blend(const Scalars<Compute>& s, Compute momentum, Compute gradient) {
  return s.beta * momentum + s.gradient_weight * gradient;
}

// The magnitude's leading 32 bits. They order as the magnitudes do, NaN above all; an integer
// maximum needs no care for NaN and is the same in any order.
ERLANGEN_INLINE int32_t magnitude_key(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits & 0x7fffffff;
}
ERLANGEN_INLINE int32_t magnitude_key(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  return static_cast<int32_t>(bits >> 32) & 0x7fffffff;
}

// The power of two that brings a magnitude with this key to [1, 2). The largest exponent stays a
// factor of two short and subnormal rows stay below 1, which no square minds.
ERLANGEN_INLINE void prescale(int32_t key, float* scale) {
  const int32_t field = 254 - (key >> 23);
  const int32_t bits = (field > 1 ? field : 1) << 23;
  std::memcpy(scale, &bits, sizeof(*scale));
}
ERLANGEN_INLINE void prescale(int32_t key, double* scale) {
  const int64_t field = 2046 - (key >> 20);
  const int64_t bits = (field > 1 ? field : 1) << 52;
  std::memcpy(scale, &bits, sizeof(*scale));
}

// p - (lost * p + length * y) with lost = 1 - decay and y the prescaled direction. Near 1 a float
// holds decay with an error of 3e-8, much of lr * weight_decay; it holds 1 - decay to full
// precision.
template <typename Compute>
ERLANGEN_INLINE Compute updated(Compute param, Compute lost, Compute length, Compute y) {
  return param - (lost * param + length * y);
}

}  // namespace row_norm
}  // namespace erlangen::kernels
