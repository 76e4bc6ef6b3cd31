#include "step.h"

#include "column_norm_kernel.h"
#include "reference.h"
#include "row_norm_kernel.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace erlangen {

namespace {

const at::Tensor& param_of(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  return groups[index.group].params[index.param];
}

EquivariantParamState& state_of(const std::vector<StepGroup>& groups, const ParamIndex& index) {
  return *groups[index.group].states[index.param];
}

at::ScalarType state_dtype(const EquivariantOptions& options, const at::Tensor& param) {
  return options.state_dtype() == "bfloat16" ? at::kBFloat16 : compute_dtype(param);
}

at::Tensor zero_state(const EquivariantOptions& options, const at::Tensor& param) {
  return at::zeros_like(param, param.options().dtype(state_dtype(options, param)));
}

// The gradient in compute precision, turned round where the group ascends.
at::Tensor gradient(const EquivariantOptions& options, const at::Tensor& param) {
  const at::Tensor grad = param.grad().to(compute_dtype(param));
  return options.maximize() ? grad.neg() : grad;
}

void apply(const EquivariantOptions& options, const ParamIndex& index, const at::Tensor& param,
           EquivariantParamState& state, const at::Tensor& update, int64_t step) {
  at::Tensor rows;
  if (options.support() == "gradient") rows = param.grad().ne(0).any(-1, /*keepdim=*/true);
  if (options.stochastic_rounding() && step == 0) step = next_step(state);
  reference::apply_update(param, update, rows,
                          {.lr = options.lr(),
                           .lr_scale = options.lr_scale(),
                           .weight_decay = options.weight_decay(),
                           .cautious = options.decay() == "cautious",
                           .stochastic_rounding = options.stochastic_rounding(),
                           .seed = options.seed(),
                           .step = step,
                           .tensor = index.position});
}

bool takes_nesterov(const EquivariantOptions& options) {
  return options.nesterov().value_or(options.rule() == "spectral");
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

void step_bucket(const Bucket& bucket, const std::vector<StepGroup>& groups) {
  std::vector<at::Tensor> inputs;
  for (const MatrixParam& member : bucket.members) {
    const EquivariantOptions& options = groups[member.index.group].options;
    const at::Tensor& param = param_of(groups, member.index);
    EquivariantParamState& state = state_of(groups, member.index);
    at::Tensor x = gradient(options, param);
    if (!bucket.polar_first) x = average(options, x, state);
    inputs.push_back(x.contiguous());
  }
  std::vector<at::Tensor> factors;
  std::vector<at::Tensor> updates =
      directions(bucket, inputs, bucket.polar_first ? &factors : nullptr);
  for (size_t i = 0; i < bucket.members.size(); ++i) {
    const ParamIndex& index = bucket.members[i].index;
    const EquivariantOptions& options = groups[index.group].options;
    EquivariantParamState& state = state_of(groups, index);
    if (bucket.polar_first) updates[i] = average(options, updates[i], state) * factors[i];
    apply(options, index, param_of(groups, index), state, updates[i], 0);
  }
}

// Whether torch's fused kernel, which walks memory and not indices, pairs up their elements.
bool same_memory_order(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.strides() == b.strides() &&
         a.is_non_overlapping_and_dense();
}

// torch's own fused kernel where it does what is asked, else the reference.
void step_adamw(const ParamIndex& index, const std::vector<StepGroup>& groups) {
  const EquivariantOptions& options = groups[index.group].options;
  const at::Tensor& param = param_of(groups, index);
  EquivariantParamState& state = state_of(groups, index);
  const auto [beta1, beta2] = options.betas();
  const int64_t step = next_step(state);
  const bool fused =
      options.decay() == "decoupled" && options.support() == "all" && options.lr_scale() == 1.0 &&
      !options.stochastic_rounding() && same_memory_order(param, param.grad()) &&
      same_memory_order(param, state.exp_avg()) && same_memory_order(param, state.exp_avg_sq());
  if (fused) {
    at::_fused_adamw_({param}, {param.grad()}, {state.exp_avg()}, {state.exp_avg_sq()}, {},
                      {state.step().to(param.device())}, options.lr(), beta1, beta2,
                      options.weight_decay(), options.eps(), /*amsgrad=*/false, options.maximize());
    return;
  }
  const at::Tensor update =
      reference::adam_direction(gradient(options, param), state.exp_avg(), state.exp_avg_sq(),
                                beta1, beta2, options.eps(), step);
  apply(options, index, param, state, update, step);
}

void create_state(const Plan& plan, const std::vector<StepGroup>& groups) {
  for (const Bucket& bucket : plan.buckets()) {
    for (const MatrixParam& member : bucket.members) {
      EquivariantParamState& state = state_of(groups, member.index);
      if (state.momentum_buffer().defined()) continue;
      state.momentum_buffer(
          zero_state(groups[member.index.group].options, param_of(groups, member.index)));
    }
  }
  for (const ParamIndex& index : plan.adamw()) {
    EquivariantParamState& state = state_of(groups, index);
    const EquivariantOptions& options = groups[index.group].options;
    if (!state.exp_avg().defined()) state.exp_avg(zero_state(options, param_of(groups, index)));
    if (!state.exp_avg_sq().defined()) {
      state.exp_avg_sq(zero_state(options, param_of(groups, index)));
    }
  }
}

}  // namespace

int64_t next_step(EquivariantParamState& state) {
  if (!state.step().defined()) state.step(at::zeros({}, at::kFloat));
  state.step().add_(1);
  return static_cast<int64_t>(state.step().item<float>());
}

void step(Plan& plan, const std::vector<StepGroup>& groups) {
  const at::NoGradGuard no_grad;
  plan.update(groups);
  create_state(plan, groups);
  for (const Bucket& bucket : plan.buckets()) {
    if (row_norm_kernel_step(bucket, groups) || column_norm_kernel_step(bucket, groups)) continue;
    step_bucket(bucket, groups);
  }
  for (const ParamIndex& index : plan.adamw()) step_adamw(index, groups);
}

}  // namespace erlangen
