#include "adamw.h"

#include "reference.h"
#include "step_parts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_fused_adamw.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <tuple>

namespace erlangen {

namespace {

// Whether torch's fused kernel, which walks memory and not indices, pairs up their elements.
bool same_memory_order(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.strides() == b.strides() &&
         a.is_non_overlapping_and_dense();
}

// torch's kernel knows one lr. With lr·update_scale for it, weight_decay / update_scale gives the
// decay that was asked for, each product rounded once more. Where the scale is 0 there is no such
// number, and where it is far from 1 one of the factors could leave float32.
bool fits_fused_kernel(double update_scale) {
  return update_scale == 1.0 || (update_scale >= 0x1p-20 && update_scale <= 0x1p20);
}

// torch's kernel takes the decay as a number. One that lies in a tensor is the reference's, for to
// read it here would wait for the device, and a captured graph would keep what it read.
bool is_fused(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  const EquivariantOptions& options = options_of(groups, index);
  const at::Tensor& param = param_of(groups, index);
  const EquivariantParamState& state = state_of(groups, index);
  return options.decay() == "decoupled" && options.support() == "all" &&
         !rounds_stochastically(options, param) && fits_fused_kernel(options.update_scale()) &&
         !scalars_of(groups, index).weight_decay.defined() &&
         same_memory_order(param, param.grad()) && same_memory_order(param, state.exp_avg()) &&
         same_memory_order(param, state.exp_avg_sq());
}

// One call of the fused kernel.
struct FusedCall {
  at::Device device;
  at::ScalarType dtype;
  double lr, update_scale, weight_decay, eps;
  EquivariantOptions::Betas betas;
  bool maximize;
  const StepScalars* scalars;
  std::vector<at::Tensor> params = {}, grads = {}, exp_avgs = {}, exp_avg_sqs = {}, steps = {};

  auto key() const {
    return std::tuple(device, dtype, lr, update_scale, weight_decay, eps, betas, maximize,
                      address(scalars->lr));
  }
};

void run(const FusedCall& call) {
  const c10::DeviceGuard guard(call.device);
  const StepScalars& scalars = *call.scalars;
  count_step(call.steps, scalars);
  const auto fused = [&](const auto& lr) {
    at::_fused_adamw_(
        call.params, call.grads, call.exp_avgs, call.exp_avg_sqs, {}, call.steps, lr,
        std::get<0>(call.betas), std::get<1>(call.betas), call.weight_decay / call.update_scale,
        call.eps, /*amsgrad=*/false, call.maximize,
        scalars.grad_scale.defined() ? std::optional(scalars.grad_scale) : std::nullopt,
        scalars.found_inf.defined() ? std::optional(scalars.found_inf) : std::nullopt);
  };
  if (!scalars.lr.defined()) {
    fused(call.lr * call.update_scale);
  } else {
    fused(call.update_scale == 1.0 ? scalars.lr : scalars.lr * call.update_scale);
  }
}

void step_by_reference(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  const EquivariantOptions& options = options_of(groups, index);
  EquivariantParamState& state = state_of(groups, index);
  const StepScalars& scalars = scalars_of(groups, index);
  const auto [beta1, beta2] = options.betas();
  Rollback rollback(scalars);
  for (const at::Tensor& tensor : {param_of(groups, index), state.exp_avg(), state.exp_avg_sq()}) {
    rollback.keep(tensor);
  }
  count_step({state.step()}, scalars);
  apply(groups, index,
        reference::adam_direction(gradient(groups, index), state.exp_avg(), state.exp_avg_sq(),
                                  beta1, beta2, options.eps(), state.step()));
  rollback.settle();
}

}  // namespace

void step_adamw(const std::vector<ParamIndex>& params, const std::vector<StepGroup>& groups) {
  std::vector<FusedCall> calls;
  for (const ParamIndex& index : params) {
    const at::Tensor& param = param_of(groups, index);
    if (!is_fused(groups, index)) {
      const c10::DeviceGuard guard(param.device());
      step_by_reference(groups, index);
      continue;
    }
    const EquivariantOptions& options = options_of(groups, index);
    const EquivariantParamState& state = state_of(groups, index);
    FusedCall call = {.device = param.device(),
                      .dtype = param.scalar_type(),
                      .lr = options.lr(),
                      .update_scale = options.update_scale(),
                      .weight_decay = options.weight_decay(),
                      .eps = options.eps(),
                      .betas = options.betas(),
                      .maximize = options.maximize(),
                      .scalars = &scalars_of(groups, index)};
    auto found = std::find_if(calls.begin(), calls.end(), [&](const FusedCall& candidate) {
      return candidate.key() == call.key();
    });
    if (found == calls.end()) found = calls.insert(calls.end(), std::move(call));
    found->params.push_back(param);
    found->grads.push_back(param.grad().resolve_neg());  // as the fused kernel wants them
    found->exp_avgs.push_back(state.exp_avg());
    found->exp_avg_sqs.push_back(state.exp_avg_sq());
    found->steps.push_back(state.step());
  }
  for (const FusedCall& call : calls) run(call);
}

}  // namespace erlangen
