#include "rules.h"

#include "check.h"
#include "reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace erlangen {

namespace {

// The sum over each matrix of x [B, m, n], in float64 and as [B, 1, 1]. In runs, because at::sum
// divides a long sum that is alone among the threads, so that their number changes its last bits.
at::Tensor matrix_sums(at::Tensor x) {
  constexpr int64_t kRun = 4096;
  x = x.flatten(1);
  while (x.size(1) > kRun) {
    const int64_t runs = x.size(1) / kRun, rest = x.size(1) % kRun;
    const at::Tensor whole = x.narrow(1, 0, runs * kRun).unflatten(1, {runs, kRun});
    const at::Tensor last = x.narrow(1, runs * kRun, rest);
    x = at::cat({whole.sum(-1, false, at::kDouble), last.sum(-1, true, at::kDouble)}, 1);
  }
  return x.sum(-1, true, at::kDouble).unsqueeze(-1);
}

// ‖Z‖_*^alpha = ⟨Z, polar(Z)⟩^alpha, summed in float64 over the prescaled Z, so that neither the
// sum nor the power overflows before the end; 0 for the zero matrix, also where alpha is negative.
at::Tensor nuclear_norm_power(const at::Tensor& z, const at::Tensor& polar_z, double alpha) {
  const auto [scaled, exponent] = reference::prescale(z, {-2, -1});
  const at::Tensor sum = matrix_sums(scaled * polar_z);
  const at::Tensor norm = sum.clamp_min(0.0) * reference::power_of_two(exponent, at::kDouble);
  return norm.pow(alpha).masked_fill(norm.eq(0.0), 0.0).to(z.scalar_type());
}

// A bare rule on [..., m, n], computed in float32 (float64 for float64) and rounded once.
at::Tensor apply_rule(const at::Tensor& x, const RuleOptions& options) {
  TORCH_CHECK_TYPE(at::isFloatingType(x.scalar_type()), options.rule, ": x has dtype ",
                   x.scalar_type(), "; allowed: floating point");
  TORCH_CHECK_VALUE(x.dim() >= 2, options.rule, ": x has shape ", x.sizes(),
                    "; allowed: [..., m, n]");
  check_polar_options(options.polar, options.rule);
  check_alpha(options.alpha, options.rule);
  const at::NoGradGuard no_grad;
  if (x.is_meta() || x.numel() == 0) {
    return at::empty_like(x, x.options(), at::MemoryFormat::Contiguous);
  }
  const at::Tensor batch = x.reshape({-1, x.size(-2), x.size(-1)}).to(compute_dtype(x));
  const Direction result = direction(batch, options);
  const at::Tensor scaled = result.factor.defined() ? result.value * result.factor : result.value;
  return scaled.to(x.scalar_type()).reshape(x.sizes()).contiguous();
}

}  // namespace

RuleOptions RuleOptions::from(const EquivariantOptions& options) {
  return {.rule = options.rule(),
          .order = options.order(),
          .center = options.center(),
          .alpha = options.alpha(),
          .adjust_lr_fn = options.adjust_lr_fn(),
          .polar = {options.ns_coefficients(), options.ns_steps(), options.ns_method(),
                    options.ns_dtype(), options.ns_eps()}};
}

Side side_of(const std::string& rule) {
  if (rule == "right_spectral") return Side::right;
  if (rule == "left_spectral") return Side::left;
  return Side::shorter;
}

Direction direction(const at::Tensor& x, const RuleOptions& options) {
  const auto projected = [&](const at::Tensor& t) {
    return options.center ? reference::center(t) : t;
  };
  at::Tensor z = projected(x);
  if (options.rule == "row_norm") return {projected(reference::row_norm(z)), {}};
  if (options.rule == "column_norm") return {projected(reference::row_norm(z.mT()).mT()), {}};

  const bool hybrid = options.rule == "hybrid";
  if (hybrid && options.order == "row_then_polar") z = projected(reference::row_norm(z));
  // A centered Z has the null vector 1, but for rounding, which polar blows up: project it out
  // again.
  at::Tensor value = projected(polar(z, side_of(options.rule), options.polar));
  if (hybrid && options.order == "polar_then_row") value = projected(reference::row_norm(value));
  at::Tensor factor;
  if (options.alpha != 0.0) factor = nuclear_norm_power(z, value, options.alpha);
  return {value, factor};
}

double shape_scale(const RuleOptions& options, int64_t rows, int64_t cols) {
  const double m = static_cast<double>(rows), n = static_cast<double>(cols);
  const std::string& fn = options.adjust_lr_fn;
  if (fn == "none") return 1.0;
  const bool unit_cols = options.rule == "column_norm";
  const bool unit_rows =
      options.rule == "row_norm" || (options.rule == "hybrid" && options.order == "polar_then_row");
  if (fn == "match_rms_adamw") {
    return 0.2 * std::sqrt(unit_rows ? n : unit_cols ? m : std::max(m, n));
  }
  if (fn == "original") return unit_rows || unit_cols ? 1.0 : std::sqrt(std::max(1.0, m / n));
  if (fn == "spectral_unclamped") return unit_rows || unit_cols ? 1.0 : std::sqrt(m / n);
  TORCH_INTERNAL_ASSERT(fn == "unit_rms_norm", fn);
  return unit_rows ? 1.0 / std::sqrt(n) : unit_cols ? std::sqrt(m) : std::sqrt(m / n);
}

at::Tensor center(const at::Tensor& x) {
  TORCH_CHECK_TYPE(at::isFloatingType(x.scalar_type()), "center: x has dtype ", x.scalar_type(),
                   "; allowed: floating point");
  TORCH_CHECK_VALUE(x.dim() >= 2, "center: x has shape ", x.sizes(), "; allowed: [..., m, n]");
  const at::NoGradGuard no_grad;
  if (x.is_meta()) return at::empty_like(x, x.options(), at::MemoryFormat::Contiguous);
  return reference::center(x.to(compute_dtype(x))).to(x.scalar_type()).contiguous();
}

at::Tensor row_norm(const at::Tensor& x) { return apply_rule(x, {.rule = "row_norm"}); }

at::Tensor column_norm(const at::Tensor& x) { return apply_rule(x, {.rule = "column_norm"}); }

at::Tensor spectral(const at::Tensor& x, double alpha, const PolarOptions& polar) {
  return apply_rule(x, {.rule = "spectral", .alpha = alpha, .polar = polar});
}

at::Tensor right_spectral(const at::Tensor& x, double alpha, const PolarOptions& polar) {
  return apply_rule(x, {.rule = "right_spectral", .alpha = alpha, .polar = polar});
}

at::Tensor left_spectral(const at::Tensor& x, double alpha, const PolarOptions& polar) {
  return apply_rule(x, {.rule = "left_spectral", .alpha = alpha, .polar = polar});
}

at::Tensor hybrid(const at::Tensor& x, const std::string& order, bool center, double alpha,
                  const PolarOptions& polar) {
  EquivariantOptions options;
  options.rule("hybrid").order(order).center(center).alpha(alpha);
  check_options(options, "hybrid");
  RuleOptions rule = RuleOptions::from(options);
  rule.polar = polar;
  return apply_rule(x, rule);
}

}  // namespace erlangen
