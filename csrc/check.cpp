#include "check.h"

#include "ivalue.h"
#include "layout.h"
#include "polar.h"
#include "step_parts.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <c10/util/strides.h>
#include <erlangen/functional.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <unordered_map>

namespace erlangen {

namespace {

void check_range(const std::string& where, const char* name, double value, double low, double high,
                 const char* allowed) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value >= low && value < high, where, ": ", name, " is ",
                    value, "; allowed: ", allowed);
}

void check_at_least_0(const std::string& where, const char* name, double value) {
  check_range(where, name, value, 0.0, std::numeric_limits<double>::infinity(),
              "finite numbers >= 0");
}

void check_fraction(const std::string& where, const char* name, double value) {
  check_range(where, name, value, 0.0, 1.0, "numbers in [0, 1)");
}

}  // namespace

void check_one_of(const std::string& where, const char* name, const std::string& value,
                  const std::vector<std::string>& allowed) {
  TORCH_CHECK_VALUE(std::find(allowed.begin(), allowed.end(), value) != allowed.end(), where, ": ",
                    name, " is ", repr(value), "; allowed: ", join(allowed));
}

const std::vector<std::string>& rule_names() {
  static const std::vector<std::string> names = {
      "spectral", "right_spectral", "left_spectral", "row_norm", "column_norm", "hybrid", "adamw"};
  return names;
}

const std::vector<std::string>& adjust_lr_fn_names() {
  static const std::vector<std::string> names = {"match_rms_adamw", "original",
                                                 "spectral_unclamped", "unit_rms_norm", "none"};
  return names;
}

std::string join(const std::vector<std::string>& names) {
  std::string result;
  for (const auto& name : names) result += (result.empty() ? "" : ", ") + name;
  return result;
}

std::string describe_group(size_t group, const EquivariantOptions& options) {
  const std::string where = "param_groups[" + std::to_string(group) + "]";
  return options.role().empty() ? where : where + " (role " + options.role() + ")";
}

std::string describe_param(size_t group, size_t param, const EquivariantOptions& options) {
  const std::string where = describe_group(group, options) + ", parameter " + std::to_string(param);
  const auto& names = options.param_names();
  return param < names.size() ? where + " (" + names[param] + ")" : where;
}

void check_polar_options(const PolarOptions& options, const std::string& where) {
  const NsCoefficients& coefficients = options.ns_coefficients;
  if (coefficients.triples.empty()) {
    check_one_of(where, "ns_coefficients", coefficients.name, coefficient_set_names());
  }
  for (const auto& triple : coefficients.triples) {
    for (double c : triple) {
      TORCH_CHECK_VALUE(std::isfinite(c), where, ": ns_coefficients holds ", c,
                        "; allowed: finite numbers");
    }
  }
  if (options.ns_steps) {
    TORCH_CHECK_VALUE(*options.ns_steps >= 1 && *options.ns_steps < 100, where, ": ns_steps is ",
                      *options.ns_steps, "; allowed: None or 1 to 99");
    TORCH_CHECK_VALUE(coefficients.name != "deepseek_v4" || *options.ns_steps == 10, where,
                      ": ns_steps is ", *options.ns_steps,
                      "; allowed with ns_coefficients \"deepseek_v4\": None or 10");
  }
  check_one_of(where, "ns_method", options.ns_method, {"auto", "standard", "gram", "exact"});
  check_one_of(where, "ns_dtype", options.ns_dtype, {"auto", "float32", "bfloat16", "float16"});
  check_at_least_0(where, "ns_eps", options.ns_eps);
}

void check_alpha(double alpha, const std::string& where) {
  TORCH_CHECK_VALUE(std::isfinite(alpha), where, ": alpha is ", alpha, "; allowed: finite numbers");
}

void check_options(const EquivariantOptions& options, const std::string& where) {
  TORCH_CHECK_VALUE(!options.rule().empty(), where, " has no rule; allowed: ", join(rule_names()));
  check_one_of(where, "rule", options.rule(), rule_names());
  const bool adamw = options.rule() == "adamw";

  check_at_least_0(where, "lr", options.lr());
  check_at_least_0(where, "update_scale", options.update_scale());
  check_at_least_0(where, "weight_decay", options.weight_decay());
  check_one_of(where, "decay", options.decay(), {"decoupled", "cautious"});
  check_one_of(where, "order", options.order(), {"row_then_polar", "polar_then_row"});
  check_one_of(where, "support", options.support(), {"all", "gradient"});
  check_fraction(where, "momentum", options.momentum());
  check_one_of(where, "momentum_order", options.momentum_order(),
               {"momentum_first", "polar_first"});
  check_one_of(where, "adjust_lr_fn", options.adjust_lr_fn(), adjust_lr_fn_names());
  check_polar_options({options.ns_coefficients(), options.ns_steps(), options.ns_method(),
                       options.ns_dtype(), options.ns_eps()},
                      where);
  check_fraction(where, "betas[0]", std::get<0>(options.betas()));
  check_fraction(where, "betas[1]", std::get<1>(options.betas()));
  check_at_least_0(where, "eps", options.eps());
  check_one_of(where, "state_dtype", options.state_dtype(), {"auto", "bfloat16"});
  const bool polar = !adamw && options.rule() != "row_norm" && options.rule() != "column_norm";
  TORCH_CHECK_VALUE(!options.capturable() || !polar || options.ns_method() != "exact", where,
                    ": capturable is True with ns_method \"exact\", whose decompositions wait for "
                    "the device; allowed: capturable=False, or another ns_method");

  if (options.center()) {
    TORCH_CHECK_VALUE(!adamw && options.rule() != "column_norm", where,
                      ": center is True with rule ", repr(options.rule()),
                      "; allowed: center=False, or another rule");
    TORCH_CHECK_VALUE(
        !splits_units(options.layout()), where,
        ": center is True with a layout that has heads, sections or pairs, whose rows "
        "share no shift; allowed: center=False, or a layout of transpose and flatten");
    TORCH_CHECK_VALUE(
        options.decay() != "cautious", where,
        ": decay is \"cautious\" with center=True, whose shift it would move; allowed: "
        "decay=\"decoupled\", or center=False");
  }
  check_alpha(options.alpha(), where);
  if (options.alpha() != 0.0) {
    const bool has_norm = options.rule() == "spectral" || options.rule() == "right_spectral" ||
                          options.rule() == "left_spectral" ||
                          (options.rule() == "hybrid" && options.order() == "row_then_polar");
    TORCH_CHECK_VALUE(has_norm, where, ": alpha is ", options.alpha(), " with rule ",
                      repr(options.rule()), options.rule() == "hybrid" ? " and order " : "",
                      options.rule() == "hybrid" ? repr(options.order()) : "",
                      ", where it has no meaning; allowed: 0");
  }
}

namespace {

void check_plain(const at::Tensor& tensor, c10::function_ref<std::string()> where) {
  TORCH_CHECK_TYPE(!tensor.unsafeGetTensorImpl()->is_python_dispatch(), where(),
                   " is a tensor subclass (such as a DTensor); allowed: plain tensors");
}

// What steps compute with; types of a byte are made for products alone.
constexpr char kAllowedTypes[] = "; allowed: float32, float64, bfloat16, float16";
bool is_allowed(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

void check_inference(const at::Tensor& tensor, c10::function_ref<std::string()> where) {
  TORCH_CHECK_VALUE(
      !tensor.is_inference() || c10::InferenceMode::is_enabled(), where(),
      " was made under torch.inference_mode(); allowed: ordinary tensors (its clone(), "
      "made outside of that mode, is one)");
}

}  // namespace

void check_param(const at::Tensor& param, const EquivariantOptions& options,
                 const std::string& where) {
  TORCH_CHECK_TYPE(param.defined(), where, " is an undefined tensor");
  TORCH_CHECK_TYPE(param.layout() == at::kStrided, where, " is sparse (", param.layout(),
                   "); allowed: dense tensors");
  TORCH_CHECK_TYPE(is_allowed(param.scalar_type()), where, " has dtype ", param.scalar_type(),
                   kAllowedTypes);
  check_plain(param, [&] { return where; });
  TORCH_CHECK_VALUE(at::has_internal_overlap(param) != at::MemOverlap::Yes, where,
                    " has several entries in one place of memory (shape ", param.sizes(),
                    ", strides ", param.strides(), "); allowed: each entry its own");
  if (options.rule() != "adamw" && param.numel() > 0) {
    matrix_views(options.layout(), param.sizes(), c10::contiguous_strides(param.sizes()), where);
  }
}

void check_capturable(const at::Tensor& param, const std::string& where) {
  TORCH_CHECK_VALUE(param.is_cuda(), where, " is on ", param.device(),
                    " with capturable=True; allowed: CUDA parameters, or capturable=False");
}

void check_scalar(const at::Tensor& scalar, const char* name,
                  c10::function_ref<std::string()> where) {
  if (!scalar.defined()) return;
  TORCH_CHECK_VALUE(scalar.numel() == 1 && scalar.layout() == at::kStrided &&
                        at::isFloatingType(scalar.scalar_type()),
                    where(), ": ", name, " is a tensor of shape ", scalar.sizes(), " and dtype ",
                    scalar.scalar_type(),
                    "; allowed: a number or a tensor that holds one real number");
}

void check_grad(const at::Tensor& grad, const at::Tensor& param,
                c10::function_ref<std::string()> where) {
  // A parameter may have become one since the plan was made.
  check_plain(param, where);
  check_plain(grad, where);
  check_inference(param, where);
  TORCH_CHECK_TYPE(grad.layout() == at::kStrided, where(), ": the gradient is sparse (",
                   grad.layout(), "); allowed: dense gradients");
  TORCH_CHECK_VALUE(grad.sizes() == param.sizes(), where(), ": the gradient has shape ",
                    grad.sizes(), ", the parameter ", param.sizes());
  TORCH_CHECK_VALUE(grad.device() == param.device(), where(), ": the gradient is on ",
                    grad.device(), ", the parameter on ", param.device());
  TORCH_CHECK_TYPE(is_allowed(grad.scalar_type()), where(), ": the gradient has dtype ",
                   grad.scalar_type(), kAllowedTypes);
}

void check_state(const EquivariantParamState& state, const at::Tensor& param,
                 c10::function_ref<std::string()> where) {
  const auto check = [&](const char* name, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const auto here = [&] { return where() + ": state " + name; };
    check_plain(tensor, here);
    TORCH_CHECK_TYPE(tensor.layout() == at::kStrided && is_allowed(tensor.scalar_type()), here(),
                     " is ", tensor.layout(), " of dtype ", tensor.scalar_type(), kAllowedTypes,
                     ", dense");
    TORCH_CHECK_VALUE(tensor.sizes() == param.sizes(), here(), " has shape ", tensor.sizes(),
                      ", the parameter ", param.sizes());
    TORCH_CHECK_VALUE(at::has_internal_overlap(tensor) != at::MemOverlap::Yes, here(),
                      " has several entries in one place of memory (strides ", tensor.strides(),
                      "); allowed: each entry its own");
    check_inference(tensor, here);
    TORCH_CHECK_VALUE(tensor.device() == param.device(), here(), " is on ", tensor.device(),
                      ", the parameter on ", param.device(),
                      "; move the parameters before the first step, or load the state again");
  };
  check("momentum_buffer", state.momentum_buffer());
  check("exp_avg", state.exp_avg());
  check("exp_avg_sq", state.exp_avg_sq());
  TORCH_CHECK_VALUE(!state.step().defined() ||
                        (state.step().layout() == at::kStrided && state.step().numel() == 1),
                    where(), ": state step has shape ", state.step().sizes(),
                    "; allowed: one element");
}

void check_state_complete(const EquivariantParamState& state, const at::Tensor& param,
                          const EquivariantOptions& options,
                          c10::function_ref<std::string()> where) {
  const auto check = [&](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.defined(), where(), ": the loaded state has no ", name,
                      ", which rule ", repr(options.rule()),
                      " continues from: is it another rule's or another optimizer's?");
  };
  const bool adamw = options.rule() == "adamw";
  if (!adamw) check("momentum_buffer", state.momentum_buffer());
  if (adamw) check("exp_avg", state.exp_avg());
  if (adamw) check("exp_avg_sq", state.exp_avg_sq());
  if (counts_steps(options, param)) check("step", state.step());
  if (!state.step().defined() || state.step().is_meta()) return;
  const double step = state.step().item().toDouble();
  TORCH_CHECK_VALUE(std::isfinite(step) && step >= 0.0, where(), ": the loaded state's step is ",
                    step, "; allowed: finite numbers >= 0");
}

void check_param_names(const EquivariantOptions& options, size_t params, const std::string& where) {
  const size_t names = options.param_names().size();
  TORCH_CHECK_VALUE(names == 0 || names == params, where, ": param_names has ", names,
                    " names for ", params, " parameters; allowed: one each, or none");
}

namespace {

struct Range {
  const char *begin, *end;
  size_t group, param;
};

void check_no_overlaps(const std::vector<std::vector<ParamMemory>>& groups) {
  std::vector<Range> ranges;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (size_t p = 0; p < groups[g].size(); ++p) {
      const ParamMemory& memory = groups[g][p];
      if (memory.begin) ranges.push_back({memory.begin, memory.end, g, p});
    }
  }
  std::stable_sort(ranges.begin(), ranges.end(),
                   [](const Range& a, const Range& b) { return std::less<>()(a.begin, b.begin); });
  for (size_t i = 1; i < ranges.size(); ++i) {
    const Range &last = ranges[i - 1], &next = ranges[i];
    TORCH_CHECK_VALUE(!std::less<>()(next.begin, last.end), "param_groups[", next.group,
                      "], parameter ", next.param, " lies in the memory of param_groups[",
                      last.group, "], parameter ", last.param,
                      "; allowed: memory of its own for each (tied weights are one parameter)");
  }
}

}  // namespace

ParamMemory::ParamMemory(const at::Tensor& param) : tensor(param.unsafeGetTensorImpl()) {
  const bool has_memory = param.defined() && param.layout() == at::kStrided &&
                          (param.is_cpu() || param.is_cuda()) && param.has_storage() &&
                          param.storage().nbytes() > 0 && param.numel() > 0 &&
                          !param.unsafeGetTensorImpl()->is_python_dispatch();
  if (!has_memory || !param.requires_grad()) return;
  begin = static_cast<const char*>(param.const_data_ptr());
  const int64_t elements = param.is_non_overlapping_and_dense() ? param.numel() : 1;
  end = begin + elements * param.element_size();
}

void check_params_apart(const std::vector<std::vector<ParamMemory>>& groups) {
  std::unordered_map<const void*, std::pair<size_t, size_t>> seen;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (size_t p = 0; p < groups[g].size(); ++p) {
      const auto [first, fresh] = seen.emplace(groups[g][p].tensor, std::pair(g, p));
      TORCH_CHECK_VALUE(fresh, "param_groups[", g, "], parameter ", p,
                        " is the same tensor as param_groups[", first->second.first,
                        "], parameter ", first->second.second,
                        "; allowed: each parameter once (tied weights are one)");
    }
  }
  check_no_overlaps(groups);
}

}  // namespace erlangen
