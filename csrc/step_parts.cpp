#include "step_parts.h"

#include "reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

namespace erlangen {

const EquivariantOptions& options_of(const std::vector<StepGroup>& groups,
                                     const ParamIndex& index) {
  return groups[index.group].options;
}

const at::Tensor& param_of(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  return groups[index.group].params[index.param];
}

EquivariantParamState& state_of(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  return *groups[index.group].states[index.param];
}

const at::Tensor& momentum_of(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  return state_of(groups, index).momentum_buffer();
}

const StepScalars& scalars_of(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  return groups[index.group].scalars(param_of(groups, index).device());
}

bool takes_nesterov(const EquivariantOptions& options) {
  return options.nesterov().value_or(options.rule() == "spectral");
}

bool rounds_stochastically(const EquivariantOptions& options, const at::Tensor& param) {
  return options.stochastic_rounding() && param.scalar_type() == at::kBFloat16;
}

bool counts_steps(const EquivariantOptions& options, const at::Tensor& param) {
  return options.rule() == "adamw" || rounds_stochastically(options, param);
}

bool is_placed(const at::Tensor& step, const at::Tensor& param) {
  return step.device() == param.device() && step.scalar_type() == at::kFloat && step.dim() == 0;
}

void place_step(EquivariantParamState& state, const at::Tensor& param) {
  const at::Tensor& step = state.step();
  const auto options = at::TensorOptions(param.device()).dtype(at::kFloat);
  if (!step.defined()) {
    state.step(at::zeros({}, options));
  } else if (!is_placed(step, param)) {
    state.step(step.detach().to(options, /*non_blocking=*/false, /*copy=*/true).reshape({}));
  }
}

void count_step(const std::vector<at::Tensor>& steps, const StepScalars& scalars) {
  if (scalars.taken.defined()) {
    at::_foreach_add_(steps, scalars.taken);
  } else {
    at::_foreach_add_(steps, 1);
  }
}

void count_step(const Bucket& bucket, const std::vector<StepGroup>& groups) {
  std::vector<at::Tensor> steps;
  for (const auto& [index, views] : bucket.members) {
    if (counts_steps(options_of(groups, index), param_of(groups, index))) {
      steps.push_back(state_of(groups, index).step());
    }
  }
  if (!steps.empty()) count_step(steps, scalars_of(groups, bucket.members.front().index));
}

at::Tensor gradient(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  const at::Tensor& param = param_of(groups, index);
  const at::Tensor& scale = scalars_of(groups, index).grad_scale;
  at::Tensor grad = param.grad().to(compute_dtype(param));
  if (scale.defined()) grad = grad / scale.to(grad.scalar_type());
  return options_of(groups, index).maximize() ? grad.neg() : grad;
}

void apply(const std::vector<StepGroup>& groups, const ParamIndex& index,
           const at::Tensor& update) {
  const EquivariantOptions& options = options_of(groups, index);
  const StepScalars& scalars = scalars_of(groups, index);
  const at::Tensor& param = param_of(groups, index);
  at::Tensor rows;
  if (options.support() == "gradient") rows = param.grad().ne(0).any(-1, /*keepdim=*/true);
  reference::apply_update(param, update, rows,
                          {.lr = options.lr(),
                           .update_scale = options.update_scale(),
                           .weight_decay = options.weight_decay(),
                           .lr_tensor = scalars.lr,
                           .weight_decay_tensor = scalars.weight_decay,
                           .cautious = options.decay() == "cautious",
                           .stochastic_rounding = rounds_stochastically(options, param),
                           .seed = options.seed(),
                           .step = state_of(groups, index).step(),
                           .tensor = index.position});
}

void Rollback::keep(const at::Tensor& tensor) {
  if (found_inf_.defined()) kept_.emplace_back(tensor, tensor.clone());
}

void Rollback::settle() {
  if (kept_.empty()) return;
  const at::Tensor overflowed = found_inf_.ne(0.0);
  for (const auto& [tensor, before] : kept_) {
    tensor.copy_(at::where(overflowed, before, tensor));
  }
  kept_.clear();
}

}  // namespace erlangen
