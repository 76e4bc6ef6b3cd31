// What the parts of a step share: finding a parameter and its state, its gradient, how it takes an
// update, and how it is left as it was.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>
#include <vector>

#include "plan.h"

namespace erlangen {

const EquivariantOptions& options_of(const std::vector<StepGroup>& groups, const ParamIndex& index);
const at::Tensor& param_of(const std::vector<StepGroup>& groups, const ParamIndex& index);
EquivariantParamState& state_of(const std::vector<StepGroup>& groups, const ParamIndex& index);
const at::Tensor& momentum_of(const std::vector<StepGroup>& groups, const ParamIndex& index);
// On the parameter's device.
const StepScalars& scalars_of(const std::vector<StepGroup>& groups, const ParamIndex& index);

bool takes_nesterov(const EquivariantOptions& options);

// Whether the parameter is rounded with noise, which differs from step to step.
bool rounds_stochastically(const EquivariantOptions& options, const at::Tensor& param);
// Whether its step continues from a step count.
bool counts_steps(const EquivariantOptions& options, const at::Tensor& param);

// A step count is a 0-dim float32 tensor where the parameter is, as torch's fused and capturable
// optimizers have it, so that nothing waits for a GPU to read it. place_step begins one at 0, and
// moves one that a checkpoint has brought in another form.
bool is_placed(const at::Tensor& step, const at::Tensor& param);
void place_step(EquivariantParamState& state, const at::Tensor& param);

// Adds this step to the parameters' counts, unless it is one that must change nothing; of a bucket,
// to those of the members that count their steps.
void count_step(const std::vector<at::Tensor>& steps, const StepScalars& scalars);
void count_step(const Bucket& bucket, const std::vector<StepGroup>& groups);

// The gradient in compute precision, over the gradients' scale, turned round where the group
// ascends.
at::Tensor gradient(const std::vector<StepGroup>& groups, const ParamIndex& index);

// Gives the parameter its update, by the reference operations. Its step has been counted.
void apply(const std::vector<StepGroup>& groups, const ParamIndex& index, const at::Tensor& update);

// Tensors that a step changes by operations which do not look at found_inf: kept before they
// change, and put back on the device itself where the gradients have overflowed.
class Rollback {
 public:
  explicit Rollback(const StepScalars& scalars) : found_inf_(scalars.found_inf) {}
  void keep(const at::Tensor& tensor);
  void settle();

 private:
  at::Tensor found_inf_;  // undefined: nothing is kept
  std::vector<std::pair<at::Tensor, at::Tensor>> kept_;
};

}  // namespace erlangen
