// The matrix rules: pure functions from a batch of matrices to a batch of directions. They know
// nothing of parameters, groups or devices.
//
// Formulas: arXiv 2605.18106; the scales by shape are Jordan's (Muon), Moonlight's and Scion's.
#pragma once

#include <ATen/core/Tensor.h>
#include <erlangen/functional.h>
#include <erlangen/options.h>

#include <string>

#include "polar.h"

namespace erlangen {

// The options that decide a direction. Parameters that agree in them can share a batch.
struct RuleOptions {
  std::string rule;
  std::string order = "row_then_polar";
  bool center = false;
  double alpha = 0.0;
  std::string adjust_lr_fn = "none";
  PolarOptions polar = {};

  static RuleOptions from(const EquivariantOptions& options);
  bool operator==(const RuleOptions&) const = default;
};

// The side whose Gram matrix a polar rule goes through.
Side side_of(const std::string& rule);

struct Direction {
  at::Tensor value;   // [B, m, n]
  at::Tensor factor;  // [B, 1, 1], ‖Z‖_*^alpha of the polar input Z; undefined when alpha is 0
};

// The direction for each matrix of x [B, m, n] (float32 or float64), without scale or factor.
Direction direction(const at::Tensor& x, const RuleOptions& options);

// The constant that multiplies a direction of m×n matrices, by `adjust_lr_fn`.
double shape_scale(const RuleOptions& options, int64_t m, int64_t n);

}  // namespace erlangen
