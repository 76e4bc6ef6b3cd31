#include "step.h"

#include "adamw.h"
#include "check.h"
#include "column_norm_kernel.h"
#include "device.h"
#include "polar_kernel.h"
#include "reference.h"
#include "row_norm_kernel.h"
#include "self_check.h"
#include "step_parts.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace erlangen {

namespace {

at::ScalarType state_dtype(const EquivariantOptions& options, const at::Tensor& param) {
  return options.state_dtype() == "bfloat16" ? at::kBFloat16 : compute_dtype(param);
}

at::Tensor zero_state(const EquivariantOptions& options, const at::Tensor& param) {
  return at::zeros_like(param, param.options().dtype(state_dtype(options, param)));
}

// m ← lerp(m, x, 1 − β); returns m, or lerp(x, m, β) under Nesterov, in x's precision.
at::Tensor average(const EquivariantOptions& options, const at::Tensor& x,
                   EquivariantParamState& state) {
  const double beta = options.momentum();
  at::Tensor m = state.momentum_buffer();
  if (m.scalar_type() == x.scalar_type()) {
    m.lerp_(x, 1.0 - beta);
  } else {
    m = m.to(x.scalar_type()).lerp_(x, 1.0 - beta);
    state.momentum_buffer().copy_(m);
  }
  return takes_nesterov(options) ? x.lerp(m, beta) : m;
}

// The rule on all members at once. `inputs` has one contiguous tensor a member, of its shape; the
// result has the directions in the same shapes, with scale and factor. When `factors` is not null
// it receives those instead of the directions.
std::vector<at::Tensor> directions(const Bucket& bucket, const std::vector<at::Tensor>& inputs,
                                   std::vector<at::Tensor>* factors) {
  std::vector<at::Tensor> outputs;
  for (const at::Tensor& input : inputs) {
    outputs.push_back(at::empty(input.sizes(), input.options()));
    if (factors) factors->push_back(at::empty(input.sizes(), input.options()));
  }
  const size_t sections = bucket.members.front().views.size();
  for (size_t s = 0; s < sections; ++s) {
    const MatrixView& shape = bucket.members.front().views[s];
    const int64_t m = shape.m(), n = shape.n();
    std::vector<at::Tensor> matrices;
    for (size_t i = 0; i < inputs.size(); ++i) {
      matrices.push_back(bucket.members[i].views[s].of(inputs[i]).reshape({-1, m, n}));
    }
    const Direction result =
        direction(matrices.size() == 1 ? matrices[0] : at::cat(matrices), bucket.rule);
    const double scale = shape_scale(bucket.rule, m, n);
    at::Tensor factor = result.factor.defined()
                            ? result.factor * scale
                            : at::full({1, 1, 1}, scale, result.value.options());
    const at::Tensor value = factors ? result.value : result.value * factor;
    factor = factor.expand({result.value.size(0), m, n});
    int64_t begin = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const MatrixView& view = bucket.members[i].views[s];
      const auto write = [&](const at::Tensor& from, const at::Tensor& to) {
        const at::Tensor target = view.of(to);
        target.copy_(from.narrow(0, begin, view.count()).reshape(target.sizes()));
      };
      write(value, outputs[i]);
      if (factors) write(factor, (*factors)[i]);
      begin += view.count();
    }
  }
  return outputs;
}

}  // namespace

void reference_step(const Bucket& bucket, const std::vector<StepGroup>& groups) {
  Rollback rollback(scalars_of(groups, bucket.members.front().index));
  std::vector<at::Tensor> inputs;
  for (const MatrixParam& member : bucket.members) {
    EquivariantParamState& state = state_of(groups, member.index);
    rollback.keep(param_of(groups, member.index));
    rollback.keep(state.momentum_buffer());
    at::Tensor x = gradient(groups, member.index);
    if (!bucket.polar_first) x = average(options_of(groups, member.index), x, state);
    inputs.push_back(x.contiguous());
  }
  std::vector<at::Tensor> factors;
  std::vector<at::Tensor> updates =
      directions(bucket, inputs, bucket.polar_first ? &factors : nullptr);
  count_step(bucket, groups);
  for (size_t i = 0; i < bucket.members.size(); ++i) {
    const ParamIndex& index = bucket.members[i].index;
    const EquivariantOptions& options = options_of(groups, index);
    EquivariantParamState& state = state_of(groups, index);
    if (bucket.polar_first) updates[i] = average(options, updates[i], state) * factors[i];
    apply(groups, index, updates[i]);
  }
  rollback.settle();
}

namespace {

// The bucket's step by a fused kernel that takes it and may be used.
std::optional<KernelStep> kernel_step(const Bucket& bucket, const std::vector<StepGroup>& groups) {
  for (const auto make : {row_norm_kernel_step, column_norm_kernel_step, polar_kernel_step}) {
    std::optional<KernelStep> step = make(bucket, groups);
    const auto passes = [&](const Dtypes& dtypes) {
      return proven({step->kernel, bucket.device, dtypes});
    };
    if (step && std::all_of(step->dtypes.begin(), step->dtypes.end(), passes)) return step;
  }
  return {};
}

// Has the kernels checked that the directions of a bucket's matrices go through.
void prove_directions(const Bucket& bucket) {
  const std::string& rule = bucket.rule.rule;
  if (!proves_kernels(bucket.device.type()) || rule == "row_norm" || rule == "column_norm") return;
  const at::ScalarType dtype = bucket.dtype == at::kDouble ? at::kDouble : at::kFloat;
  for (const MatrixView& view : bucket.members.front().views) {
    prove_polar(dtype, bucket.device, side_of(rule), view.m(), view.n(), bucket.rule.polar);
  }
}

// Calls visitor(index) for every parameter that takes this step.
template <typename Visitor>
void each_param(const Plan& plan, Visitor&& visitor) {
  for (const Bucket& bucket : plan.buckets()) {
    for (const MatrixParam& member : bucket.members) visitor(member.index);
  }
  for (const ParamIndex& index : plan.adamw()) visitor(index);
  for (const ParamIndex& index : plan.empty()) visitor(index);
}

void create_state(const Plan& plan, const std::vector<StepGroup>& groups) {
  each_param(plan, [&](const ParamIndex& index) {
    const EquivariantOptions& options = options_of(groups, index);
    const at::Tensor& param = param_of(groups, index);
    EquivariantParamState& state = state_of(groups, index);
    if (options.rule() == "adamw") {
      if (!state.exp_avg().defined()) state.exp_avg(zero_state(options, param));
      if (!state.exp_avg_sq().defined()) state.exp_avg_sq(zero_state(options, param));
    } else if (!state.momentum_buffer().defined()) {
      state.momentum_buffer(zero_state(options, param));
    }
    if (counts_steps(options, param)) place_step(state, param);
  });
}

// A graph holds addresses and repeats every operation: state that came into being inside of it
// would begin anew at each replay, and what was read on the host would stay what it was.
void check_capture(const Plan& plan, const std::vector<StepGroup>& groups,
                   const StepInputs& inputs) {
  const auto check_place = [](const at::Tensor& scalar, const char* name) {
    TORCH_CHECK_VALUE(!scalar.defined() || !scalar.is_cpu(),
                      "step: the step is being captured in a CUDA graph and ", name,
                      " is a tensor on the CPU, whose value every replay would repeat; allowed: a "
                      "tensor on the device");
  };
  check_place(inputs.grad_scale, "grad_scale");
  check_place(inputs.found_inf, "found_inf");
  each_param(plan, [&](const ParamIndex& index) {
    const EquivariantOptions& options = options_of(groups, index);
    const EquivariantParamState& state = state_of(groups, index);
    const auto where = [&] { return describe_param(index.group, index.param, options); };
    TORCH_CHECK_VALUE(options.capturable(), where(),
                      ": the step is being captured in a CUDA graph with capturable=False; "
                      "allowed: capturable=True");
    const bool has_state = options.rule() == "adamw"
                               ? state.exp_avg().defined() && state.exp_avg_sq().defined()
                               : state.momentum_buffer().defined();
    const bool has_step =
        !counts_steps(options, param_of(groups, index)) ||
        (state.step().defined() && is_placed(state.step(), param_of(groups, index)));
    TORCH_CHECK_VALUE(has_state && has_step, where(),
                      ": the step is being captured in a CUDA graph and has no state yet, which "
                      "its first step creates; take one step before the capture");
  });
}

}  // namespace

void step(Plan& plan, std::vector<StepGroup>& groups, StepInputs inputs) {
  const at::NoGradGuard no_grad;
  const auto here = [] { return std::string("step"); };
  check_scalar(inputs.grad_scale, "grad_scale", here);
  check_scalar(inputs.found_inf, "found_inf", here);
  plan.update(groups);
  const auto& devices = plan.devices();
  if (inputs.capturing || std::any_of(devices.begin(), devices.end(), is_capturing)) {
    check_capture(plan, groups, inputs);
  }
  if (inputs.found_inf.defined() && inputs.found_inf.is_cpu()) {  // read without waiting
    if (inputs.found_inf.item().toDouble() != 0.0) return;
    inputs.found_inf.reset();
  }
  take_step(plan, groups, inputs);
}

void take_step(const Plan& plan, std::vector<StepGroup>& groups, const StepInputs& inputs) {
  const at::NoGradGuard no_grad;
  place_scalars(groups, inputs);
  create_state(plan, groups);
  // All checks of kernels before the first change.
  std::vector<std::optional<KernelStep>> steps;
  for (const Bucket& bucket : plan.buckets()) {
    const c10::DeviceGuard guard(bucket.device);
    prove_directions(bucket);
    steps.push_back(kernel_step(bucket, groups));
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    const Bucket& bucket = plan.buckets()[i];
    const c10::DeviceGuard guard(bucket.device);
    const auto step = std::exchange(steps[i], {});  // and its memory, for no longer than it runs
    if (!step) {
      reference_step(bucket, groups);
      continue;
    }
    step->run();
    count_kernel_steps(static_cast<int64_t>(bucket.members.size()));
  }
  step_adamw(plan.adamw(), groups);
}

}  // namespace erlangen
