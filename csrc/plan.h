// Which parameters a step computes together. Made once from the groups, and again when what it was
// made from changes: rules, layouts, shapes, types, devices, or which parameters have a gradient.
#pragma once

#include <ATen/core/Tensor.h>
#include <erlangen/optimizer.h>
#include <erlangen/options.h>

#include <utility>
#include <vector>

#include "check.h"
#include "layout.h"
#include "rules.h"
#include "scalars.h"

namespace erlangen {

// One group as a step sees it: complete options, and a state for each parameter.
struct StepGroup {
  EquivariantOptions options;
  std::vector<at::Tensor> params;
  std::vector<EquivariantParamState*> states;
  // Where defined, read on the device in place of the option: one element each, on any device.
  at::Tensor lr = {};
  at::Tensor weight_decay = {};
  // The step's own: see place_scalars.
  std::vector<std::pair<at::Device, StepScalars>> placed = {};

  // The scalars on a device that parameters of this group are on.
  const StepScalars& scalars(at::Device device) const;
};

// A parameter: which group, which of its parameters, and its position among all parameters.
struct ParamIndex {
  size_t group;
  size_t param;
  int64_t position;
};

// A parameter under a matrix rule, and its logical matrices as views of a contiguous tensor of its
// shape: one view, or one for each section of its layout.
struct MatrixParam {
  ParamIndex index;
  std::vector<MatrixView> views;
};

// Parameters of one matrix rule whose logical matrices have the same shapes, type and device.
struct Bucket {
  RuleOptions rule;
  bool polar_first;
  at::ScalarType dtype;
  at::Device device;
  std::vector<MatrixParam> members;
  int64_t elements = 0;  // of all members together
};

class Plan {
 public:
  Plan() = default;

  // Brings the plan up to date; checks again that parameters lie apart when one's memory is
  // another. Raises, with nothing changed, for options, parameters, gradients or state that no step
  // can take.
  void update(const std::vector<StepGroup>& groups);

  const std::vector<Bucket>& buckets() const { return buckets_; }
  const std::vector<ParamIndex>& adamw() const { return adamw_; }
  // Those of matrix rules without elements: there is nothing to compute, but they have a state as
  // in torch, which torch.distributed.checkpoint asks for.
  const std::vector<ParamIndex>& empty() const { return empty_; }
  // The devices of all parameters.
  const std::vector<at::Device>& devices() const { return devices_; }

 private:
  // What the plan was made from. Learning rates and the like are not part of it: schedulers change
  // them at every step.
  struct ParamSource {
    std::vector<int64_t> sizes;
    at::ScalarType dtype;
    at::Device device;
    bool has_grad;
    bool operator==(const ParamSource&) const = default;
  };
  struct GroupSource {
    RuleOptions rule;
    bool polar_first;
    Layout layout;
    bool capturable;
    std::vector<ParamSource> params;
    bool operator==(const GroupSource&) const = default;
  };

  void make(const std::vector<StepGroup>& groups, const std::vector<GroupSource>& sources);

  std::vector<EquivariantOptions> checked_;       // options that need no second check
  std::vector<std::vector<ParamMemory>> memory_;  // of each group, known to lie apart
  std::vector<GroupSource> sources_;
  std::vector<Bucket> buckets_;
  std::vector<ParamIndex> adamw_, empty_;
  std::vector<at::Device> devices_;
};

}  // namespace erlangen
