// What a user may give: one function for each kind of value, called wherever such a value enters.
// Every error names the place, the value and what is allowed, and is raised before any change.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>
#include <erlangen/functional.h>
#include <erlangen/optimizer.h>
#include <erlangen/options.h>

#include <string>
#include <vector>

namespace erlangen {

// "a, b, c"
std::string join(const std::vector<std::string>& names);

const std::vector<std::string>& rule_names();
const std::vector<std::string>& adjust_lr_fn_names();

// Raises c10::ValueError when `value` is none of `allowed`.
void check_one_of(const std::string& where, const char* name, const std::string& value,
                  const std::vector<std::string>& allowed);

// "param_groups[1]", and "param_groups[1], parameter 3 (model.norm.weight)".
std::string describe_group(size_t group, const EquivariantOptions& options);
std::string describe_param(size_t group, size_t param, const EquivariantOptions& options);

// Raises c10::ValueError for a value out of range, an unknown name, or options that exclude each
// other.
void check_options(const EquivariantOptions& options, const std::string& where);

// The same for what PolarOptions says, and for alpha alone, for callers of the bare rules.
void check_polar_options(const PolarOptions& options, const std::string& where);
void check_alpha(double alpha, const std::string& where);

// Raises c10::TypeError for a parameter of a type or layout that no rule can take, c10::ValueError
// for a shape that this group's rule cannot take.
void check_param(const at::Tensor& param, const EquivariantOptions& options,
                 const std::string& where);

// Raises c10::ValueError for a parameter whose step no CUDA graph can capture.
void check_capturable(const at::Tensor& param, const std::string& where);

// Raises c10::ValueError for a defined tensor that does not hold one real number. Reads none.
void check_scalar(const at::Tensor& scalar, const char* name,
                  c10::function_ref<std::string()> where);

// Raises c10::TypeError or c10::ValueError for a gradient that does not fit its parameter. Called
// at every step, so it asks `where` for its text only when there is something to say.
void check_grad(const at::Tensor& grad, const at::Tensor& param,
                c10::function_ref<std::string()> where);

// Raises c10::ValueError for state of another shape or on another device than its parameter.
void check_state(const EquivariantParamState& state, const at::Tensor& param,
                 c10::function_ref<std::string()> where);

// Raises c10::ValueError for state that lacks what the rule continues from.
void check_state_complete(const EquivariantParamState& state, const at::Tensor& param,
                          const EquivariantOptions& options,
                          c10::function_ref<std::string()> where);

// Raises c10::ValueError when some but not all of a group's parameters have a name.
void check_param_names(const EquivariantOptions& options, size_t params, const std::string& where);

// Which tensor a parameter is, and where it lies.
struct ParamMemory {
  const void* tensor;
  // Its range, or its first element where it has gaps; null for a parameter that requires no
  // gradient or has no memory.
  const char* begin = nullptr;
  const char* end = nullptr;

  explicit ParamMemory(const at::Tensor& param);
  bool operator==(const ParamMemory&) const = default;
};

// Raises c10::ValueError when a tensor stands twice among the parameters of all groups, or two lie
// in the same memory.
void check_params_apart(const std::vector<std::vector<ParamMemory>>& groups);

}  // namespace erlangen
