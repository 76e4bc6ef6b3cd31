// The scalar formulas that the steps of all matrix rules share on CPU and CUDA: momentum and
// direction, scale of a sum of squares, new parameter and its rounding noise. kernels/row_norm.h
// and its like say what a step computes.

#pragma once

#include <cstdint>
#include <cstring>

#include "philox.h"
#include "types.h"

namespace erlangen::kernels::norm_step {

// Scalars of the formula in the type that computes.
template <typename Compute>
struct Scalars {
  Compute beta;
  Compute gradient_weight;  // 1 - beta; negative when maximizing
};

// The weight, not each gradient, is divided by the gradient's scale: to the same bits where that is
// a power of two.
template <typename Compute, typename Options>
ERLANGEN_INLINE Scalars<Compute> scalars(const Options& options) {
  const double weight = options.maximize ? options.momentum - 1.0 : 1.0 - options.momentum;
  Scalars<Compute> s{static_cast<Compute>(options.momentum), static_cast<Compute>(weight)};
  if (options.grad_scale) s.gradient_weight /= static_cast<Compute>(*options.grad_scale);
  return s;
}

template <typename Options>
ERLANGEN_INLINE bool overflowed(const Options& options) {
  return options.found_inf && *options.found_inf != 0.0f;
}

template <typename Tensor>
ERLANGEN_INLINE double lr(const Tensor& tensor) {
  return tensor.lr_pointer ? static_cast<double>(*tensor.lr_pointer) : tensor.lr;
}

template <typename Tensor>
ERLANGEN_INLINE double weight_decay(const Tensor& tensor) {
  return tensor.weight_decay_pointer ? static_cast<double>(*tensor.weight_decay_pointer)
                                     : tensor.weight_decay;
}

// What a parameter loses, 1 - decay. Near 1 a float holds decay with an error of 3e-8, much of
// lr * weight_decay; it holds 1 - decay to full precision.
template <typename Tensor>
ERLANGEN_INLINE double lost(const Tensor& tensor) {
  return lr(tensor) * weight_decay(tensor);
}

template <typename Tensor, typename Options>
ERLANGEN_INLINE RoundingNoise rounding_noise(const Tensor& tensor, const Options& options) {
  const int64_t step =
      tensor.step_pointer ? static_cast<int64_t>(*tensor.step_pointer) : tensor.step;
  return {options.seed, static_cast<uint32_t>(step), static_cast<uint32_t>(tensor.position)};
}

// Whether the kernels take this combination of types.
template <typename Options>
bool types_fit(const Options& options) {
  if (options.dtype == DType::float64) return options.momentum_dtype == DType::float64;
  return options.momentum_dtype == DType::float32 || options.momentum_dtype == DType::bfloat16;
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

// The power of two that brings a magnitude with this key to [2^exponent, 2^(exponent + 1)), a
// normal number: the largest magnitudes stay above that and subnormal ones below, which no square
// minds.
ERLANGEN_INLINE void prescale(int32_t key, float* scale, int32_t exponent = 0) {
  const int32_t field = 254 + exponent - (key >> 23);
  const int32_t bits = (field > 1 ? field : 1) << 23;
  std::memcpy(scale, &bits, sizeof(*scale));
}
ERLANGEN_INLINE void prescale(int32_t key, double* scale, int32_t exponent = 0) {
  const int64_t field = 2046 + exponent - (key >> 20);
  const int64_t bits = (field > 1 ? field : 1) << 52;
  std::memcpy(scale, &bits, sizeof(*scale));
}

// p - (lost * p + length * y), y the prescaled direction.
template <typename Compute>
ERLANGEN_INLINE Compute updated(Compute param, Compute lost, Compute length, Compute y) {
  return param - (lost * param + length * y);
}

// `lost` where the parameter moves towards zero, else 0. The product of two small numbers would
// vanish, so the signs are compared.
template <typename Compute>
ERLANGEN_INLINE Compute cautiously(Compute lost, Compute param, Compute y) {
  const bool shrinks = (param > 0 && y > 0) || (param < 0 && y < 0);
  return shrinks ? lost : Compute(0);
}

}  // namespace erlangen::kernels::norm_step
