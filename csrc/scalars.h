// Numbers of a step that may lie in tensors on the device: whoever changes them there changes what
// the next replay of a captured CUDA graph does, and nothing waits for the device to read them.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace erlangen {

struct StepGroup;

// 0-dim float32 tensors on the device of the parameters that take the step; kernels get their
// addresses.
struct StepScalars {
  at::Tensor lr;            // undefined: the options hold it
  at::Tensor weight_decay;  // undefined: the options hold it
  at::Tensor grad_scale;    // gradients are divided by it; undefined: 1
  at::Tensor found_inf;     // 1: the step must change nothing; 0, or undefined: it is taken
  at::Tensor taken;         // 1 - found_inf: how many steps this one counts for

  // Whether the options do not say everything.
  bool any() const;
};

// The address that a kernel reads a scalar from; null where the tensor is undefined.
const float* address(const at::Tensor& scalar);

// What the caller of a step says beside the groups.
struct StepInputs {
  // As torch.amp.GradScaler sets them; one element each, on any device.
  at::Tensor grad_scale;
  at::Tensor found_inf;
  // Whether the step is being captured in a CUDA graph.
  bool capturing = false;
};

// Fills every group's `placed` from its lr and weight_decay and from the inputs.
void place_scalars(std::vector<StepGroup>& groups, const StepInputs& inputs);

}  // namespace erlangen
