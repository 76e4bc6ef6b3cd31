#include "check.h"
#include "explain.h"
#include "plan.h"
#include "step.h"

#include <c10/util/Exception.h>
#include <erlangen/optimizer.h>
#include <torch/optim/serialize.h>

#include <algorithm>
#include <map>

namespace erlangen {

using torch::optim::OptimizerParamGroup;
using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

namespace {

const EquivariantOptions& options_of(const torch::optim::OptimizerOptions& options) {
  const auto* result = dynamic_cast<const EquivariantOptions*>(&options);
  TORCH_CHECK_TYPE(result, "param group options must be erlangen::EquivariantOptions");
  return *result;
}

// The group as the optimizer keeps it: its own options, filled up from the defaults.
OptimizerParamGroup completed(const OptimizerParamGroup& group, const EquivariantOptions& defaults,
                              size_t index) {
  EquivariantOptions options =
      group.has_options() ? options_of(group.options()) : EquivariantOptions();
  options.fill_from(defaults);
  check_options(options, describe_group(index, options));
  check_param_names(options, group.params().size(), describe_group(index, options));
  for (size_t p = 0; p < group.params().size(); ++p) {
    const torch::Tensor& param = group.params()[p];
    const std::string where = describe_param(index, p, options);
    check_param(param, options, where);
    TORCH_CHECK_VALUE(param.is_leaf(), where,
                      " is computed from other tensors; allowed: leaves of the graph");
  }
  return {group.params(), std::make_unique<EquivariantOptions>(std::move(options))};
}

// Whether the parameters of the first `count` groups lie apart.
void check_groups(const std::vector<OptimizerParamGroup>& groups, size_t count) {
  std::vector<std::vector<ParamMemory>> memory;
  for (size_t g = 0; g < count; ++g) {
    memory.emplace_back(groups[g].params().begin(), groups[g].params().end());
  }
  check_params_apart(memory);
}

std::vector<OptimizerParamGroup> completed(const std::vector<OptimizerParamGroup>& groups,
                                           const EquivariantOptions& defaults) {
  TORCH_CHECK_VALUE(!groups.empty(), "param_groups is empty; allowed: at least one group");
  std::vector<OptimizerParamGroup> result;
  for (size_t g = 0; g < groups.size(); ++g) {
    result.push_back(completed(groups[g], defaults, g));
  }
  check_groups(result, result.size());
  return result;
}

}  // namespace

void EquivariantParamState::serialize(OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(momentum_buffer);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(exp_avg);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(exp_avg_sq);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(step);
}

void EquivariantParamState::serialize(InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(torch::Tensor, momentum_buffer);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(torch::Tensor, exp_avg);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(torch::Tensor, exp_avg_sq);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(torch::Tensor, step);
}

Equivariant::Equivariant(const std::vector<OptimizerParamGroup>& param_groups,
                         EquivariantOptions defaults)
    : Optimizer(std::vector<OptimizerParamGroup>(), std::make_unique<EquivariantOptions>(defaults)),
      plan_(std::make_unique<Plan>()) {
  // Not by the base class's add_param_group, which in newer torch keeps a group's own options only
  // where they are of one of torch's types.
  param_groups_ = completed(param_groups, defaults);
  known_groups_ = param_groups_.size();
}

Equivariant::Equivariant(std::vector<torch::Tensor> params, EquivariantOptions defaults)
    : Equivariant({OptimizerParamGroup(params)}, [&] {
        TORCH_CHECK_VALUE(!params.empty(), "the list of parameters is empty");
        TORCH_CHECK_VALUE(!defaults.rule().empty(),
                          "Equivariant was given bare parameters, which have no rule; allowed: "
                          "erlangen::param_groups(module), groups with a rule, or a preset such as "
                          "erlangen::Muon");
        return std::move(defaults);
      }()) {}

Equivariant::~Equivariant() = default;
Equivariant::Equivariant(Equivariant&&) noexcept = default;
Equivariant& Equivariant::operator=(Equivariant&&) noexcept = default;

void Equivariant::add_param_group(const OptimizerParamGroup& param_group) {
  take_up_groups();
  param_groups_.push_back(param_group);
  take_up_groups();
}

void Equivariant::take_up_groups() {
  known_groups_ = std::min(known_groups_, param_groups_.size());
  for (; known_groups_ < param_groups_.size(); ++known_groups_) {
    OptimizerParamGroup& group = param_groups_[known_groups_];
    try {
      group = completed(group, options_of(defaults()), known_groups_);
      check_groups(param_groups_, known_groups_ + 1);
    } catch (...) {  // it would stand in the way of every step from here on
      param_groups_.erase(param_groups_.begin() + static_cast<std::ptrdiff_t>(known_groups_));
      throw;
    }
  }
}

torch::Tensor Equivariant::step(LossClosure closure) {
  torch::Tensor loss;
  if (closure) {
    const at::AutoGradMode with_grad(true);
    loss = closure();
  }
  take_up_groups();
  // States of parameters that turn out to be in error must not stay: they are made aside first.
  std::vector<StepGroup> groups;
  std::vector<std::pair<void*, std::unique_ptr<EquivariantParamState>>> fresh;
  for (auto& group : param_groups_) {
    StepGroup& step_group = groups.emplace_back();
    step_group.options = options_of(group.options());
    step_group.params = group.params();
    if (groups.size() <= lr_tensors_.size()) step_group.lr = lr_tensors_[groups.size() - 1];
    for (const torch::Tensor& param : group.params()) {
      void* key = param.unsafeGetTensorImpl();
      const auto found = state_.find(key);
      if (found != state_.end()) {
        step_group.states.push_back(static_cast<EquivariantParamState*>(found->second.get()));
      } else {
        fresh.emplace_back(key, std::make_unique<EquivariantParamState>());
        step_group.states.push_back(fresh.back().second.get());
      }
    }
  }
  const auto keep_fresh = [&] {
    for (auto& [key, state] : fresh) {
      const bool used = state->momentum_buffer().defined() || state->exp_avg().defined();
      if (used) state_[key] = std::move(state);
    }
  };
  try {
    erlangen::step(*plan_, groups, {grad_scale_, found_inf_});
  } catch (...) {  // out of memory halfway: what has moved keeps its state
    keep_fresh();
    throw;
  }
  keep_fresh();
  return loss;
}

void Equivariant::set_grad_scale(torch::Tensor grad_scale, torch::Tensor found_inf) {
  const auto here = [] { return std::string("set_grad_scale"); };
  check_scalar(grad_scale, "grad_scale", here);
  check_scalar(found_inf, "found_inf", here);
  grad_scale_ = std::move(grad_scale);
  found_inf_ = std::move(found_inf);
}

void Equivariant::set_lr_tensor(size_t group, torch::Tensor lr) {
  TORCH_CHECK_VALUE(group < param_groups_.size(), "set_lr_tensor: group is ", group,
                    "; allowed: less than ", param_groups_.size());
  check_scalar(lr, "lr",
               [&] { return describe_group(group, options_of(param_groups_[group].options())); });
  if (lr_tensors_.size() <= group) lr_tensors_.resize(group + 1);
  lr_tensors_[group] = std::move(lr);
}

void Equivariant::save(OutputArchive& archive) const {
  torch::optim::serialize<EquivariantParamState, EquivariantOptions>(archive, *this);
}

void Equivariant::load(InputArchive& archive) {
  // torch's own load replaces group after group, so one that does not fit would leave the optimizer
  // half replaced: load into a copy, check that, and take it over.
  Equivariant loaded(param_groups_, options_of(defaults()));
  try {
    torch::optim::serialize<EquivariantParamState, EquivariantOptions>(archive, loaded);
  } catch (const c10::Error& error) {
    TORCH_CHECK_VALUE(false, "the archive does not fit: ", error.what_without_backtrace(),
                      "; allowed: what an Equivariant of the same groups has saved");
  }
  for (size_t g = 0; g < loaded.param_groups_.size(); ++g) {
    const auto& group = loaded.param_groups_[g];
    const EquivariantOptions& options = options_of(group.options());
    check_options(options, describe_group(g, options));
    for (size_t p = 0; p < group.params().size(); ++p) {
      const std::string where = describe_param(g, p, options);
      check_param(group.params()[p], options, where);
      const auto found = loaded.state_.find(group.params()[p].unsafeGetTensorImpl());
      if (found == loaded.state_.end()) continue;
      const auto& state = static_cast<const EquivariantParamState&>(*found->second);
      check_state(state, group.params()[p], [&] { return where; });
      check_state_complete(state, group.params()[p], options, [&] { return where; });
    }
  }
  param_groups_ = std::move(loaded.param_groups_);
  known_groups_ = param_groups_.size();
  state_ = std::move(loaded.state_);
  plan_ = std::make_unique<Plan>();
}

std::string Equivariant::explain(bool full) const {
  std::vector<ExplainGroup> groups;
  for (const auto& group : param_groups_) {
    groups.push_back({options_of(group.options()), group.params()});
  }
  return erlangen::explain(groups, full);
}

EquivariantOptions preset_options(const std::string& preset) {
  static const std::map<std::string, EquivariantOptions> presets = {
      {"Muon", EquivariantOptions()
                   .rule("spectral")
                   .weight_decay(0.1)
                   .nesterov(true)
                   .ns_coefficients("jordan")
                   .ns_method("standard")
                   .ns_eps(1e-7)
                   .adjust_lr_fn("original")
                   .layout({LayoutStep::flatten_kernels()})},
      {"PolarGrad",
       EquivariantOptions().rule("spectral").nesterov(false).alpha(1.0).adjust_lr_fn("none")},
      {"RowNorm", EquivariantOptions().rule("row_norm")},
      {"RightSpectral", EquivariantOptions().rule("right_spectral")},
      {"LeftSpectral", EquivariantOptions().rule("left_spectral")},
      {"Hybrid", EquivariantOptions().rule("hybrid")},
  };
  std::vector<std::string> names;
  for (const auto& [name, options] : presets) names.push_back(name);
  TORCH_CHECK_VALUE(presets.count(preset), "preset is \"", preset, "\"; allowed: ", join(names));
  return presets.at(preset);
}

}  // namespace erlangen
