// The reference operations: plain ATen on any device. Fused kernels are compared with these, and
// stand in for them where one exists. Arguments are float32 or float64 unless said.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

namespace erlangen {

// float64 for float64, else float32: what everything but the polar products computes in.
at::ScalarType compute_dtype(const at::Tensor& tensor);

namespace reference {

// 2^exponent in float32 or float64, to the bit; its exponents must be those of normal numbers.
at::Tensor power_of_two(const at::Tensor& exponent, at::ScalarType dtype);

// x · 2^-e with e such that the largest |entry| over `dims` lies in [1/2, 1); and e, with `dims`
// kept at size 1. Squares of the result neither overflow nor vanish. Exact, and 0 for zeros.
std::pair<at::Tensor, at::Tensor> prescale(const at::Tensor& x, at::IntArrayRef dims);

// x − mean over dimension -2.
at::Tensor center(const at::Tensor& x);

// Rows (dimension -1) divided by their length; zero rows stay zero.
at::Tensor row_norm(const at::Tensor& x);

// How one parameter takes its update. The tensors are 0-dim and on the parameter's device, and are
// not read on the host unless that is the CPU.
struct ApplyArgs {
  double lr;
  double update_scale;
  double weight_decay;
  at::Tensor lr_tensor = {};            // defined: in place of lr
  at::Tensor weight_decay_tensor = {};  // defined: in place of weight_decay
  bool cautious = false;                // decay only where parameter · update > 0
  bool stochastic_rounding = false;     // for bfloat16 parameters
  int64_t seed = 0;
  at::Tensor step = {};  // keys of the rounding noise: this step (undefined: 0),
  int64_t tensor = 0;    // and the parameter's position among all
};

// p ← (1 − lr·weight_decay)·p − lr·update_scale·update, rounded once. `update` has p's shape;
// `rows` is undefined or a bool tensor that broadcasts to p, false where p keeps its value.
void apply_update(const at::Tensor& param, const at::Tensor& update, const at::Tensor& rows,
                  const ApplyArgs& args);

// float32 x to bfloat16: up or down with probability by distance, by Philox noise keyed by (seed,
// step, tensor, element). Infinities and NaN stay.
at::Tensor stochastic_round(const at::Tensor& x, const ApplyArgs& key);

// The direction of Adam (Kingma & Ba; bias-corrected as in torch.optim.AdamW): updates exp_avg and
// exp_avg_sq, returns m̂ / (√v̂ + eps). `step` counts from 1; it is 0-dim, on the gradient's device.
at::Tensor adam_direction(const at::Tensor& grad, const at::Tensor& exp_avg,
                          const at::Tensor& exp_avg_sq, double beta1, double beta2, double eps,
                          const at::Tensor& step);

}  // namespace reference
}  // namespace erlangen
