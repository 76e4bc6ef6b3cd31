#include "scalars.h"

#include "plan.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>

#include <algorithm>

namespace erlangen {

namespace {

// Another GPU's scalar is copied without waiting; only parameters on the CPU make the host wait.
// One on the host goes to a GPU by value: a queued or captured copy would read the host's memory
// later.
at::Tensor on_device(const at::Tensor& scalar, at::Device device) {
  if (!scalar.defined()) return {};
  if (scalar.is_cpu() && !device.is_cpu()) {
    return at::full({}, scalar.item(), at::TensorOptions(device).dtype(at::kFloat));
  }
  return scalar.detach().reshape({}).to(device, at::kFloat, /*non_blocking=*/!device.is_cpu());
}

// What all groups share on this device.
StepScalars shared(const StepInputs& inputs, at::Device device) {
  StepScalars scalars;
  scalars.grad_scale = on_device(inputs.grad_scale, device);
  if (inputs.found_inf.defined()) {
    // GradScaler counts the devices with an overflow, torch's fused AdamW asks for exactly 1.
    scalars.found_inf = on_device(inputs.found_inf, device).ne(0.0).to(at::kFloat);
    scalars.taken = 1.0 - scalars.found_inf;
  }
  return scalars;
}

}  // namespace

bool StepScalars::any() const {
  return lr.defined() || weight_decay.defined() || grad_scale.defined() || found_inf.defined();
}

const float* address(const at::Tensor& scalar) {
  return scalar.defined() ? scalar.const_data_ptr<float>() : nullptr;
}

void place_scalars(std::vector<StepGroup>& groups, const StepInputs& inputs) {
  std::vector<std::pair<at::Device, StepScalars>> of_devices;
  for (StepGroup& group : groups) {
    group.placed.clear();
    const bool all_in_options = !group.lr.defined() && !group.weight_decay.defined() &&
                                !inputs.grad_scale.defined() && !inputs.found_inf.defined();
    if (all_in_options) continue;
    for (const at::Tensor& param : group.params) {
      const at::Device device = param.device();
      const auto is_here = [&](const auto& entry) { return entry.first == device; };
      if (std::any_of(group.placed.begin(), group.placed.end(), is_here)) continue;
      auto found = std::find_if(of_devices.begin(), of_devices.end(), is_here);
      if (found == of_devices.end()) {
        of_devices.emplace_back(device, shared(inputs, device));
        found = of_devices.end() - 1;
      }
      StepScalars scalars = found->second;
      scalars.lr = on_device(group.lr, device);
      scalars.weight_decay = on_device(group.weight_decay, device);
      group.placed.emplace_back(device, std::move(scalars));
    }
  }
}

}  // namespace erlangen
