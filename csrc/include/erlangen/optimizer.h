// Equivariant and its presets: torch::optim::Optimizer subclasses that give every parameter group
// the update rule that its symmetry asks for (arXiv 2605.18106).
#pragma once

#include <erlangen/options.h>
#include <torch/optim/optimizer.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace erlangen {

class Plan;

// One parameter's state; tensors come into being at the parameter's first step.
struct EquivariantParamState
    : public torch::optim::OptimizerCloneableParamState<EquivariantParamState> {
  // Matrix rules: average of the gradients (or directions), the parameter's shape.
  TORCH_ARG(torch::Tensor, momentum_buffer);
  // adamw: the two moments, the parameter's shape.
  TORCH_ARG(torch::Tensor, exp_avg);
  TORCH_ARG(torch::Tensor, exp_avg_sq);
  // adamw and stochastic rounding: steps taken, a 0-dim float32 tensor on the parameter's device.
  TORCH_ARG(torch::Tensor, step);

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
};

// Takes parameter groups, each with a rule: erlangen::param_groups(module) makes them. A value set
// in a group's own options beats the one in `defaults`. Every error (c10::Error: c10::ValueError,
// c10::TypeError) is raised before a parameter or a state has changed.
class Equivariant : public torch::optim::Optimizer {
 public:
  explicit Equivariant(const std::vector<torch::optim::OptimizerParamGroup>& param_groups,
                       EquivariantOptions defaults = {});
  // Bare parameters, for all of which `defaults` must have the rule, as the presets below do.
  explicit Equivariant(std::vector<torch::Tensor> params, EquivariantOptions defaults = {});
  ~Equivariant() override;
  Equivariant(Equivariant&&) noexcept;
  Equivariant& operator=(Equivariant&&) noexcept;

  // Parameters whose gradient is undefined are left alone. Returns the closure's loss, if any.
  torch::Tensor step(LossClosure closure = nullptr) override;
  // For gradients of a scaled loss (mixed precision). Every later step divides its gradients by
  // grad_scale, and where found_inf is not 0 it changes nothing, its count included. One element
  // each, on any device, in a CUDA graph on CUDA; there nothing waits to read them. Undefined:
  // neither. Gradients of adamw groups may be divided in place, as torch's fused AdamW does.
  void set_grad_scale(torch::Tensor grad_scale, torch::Tensor found_inf);
  // For CUDA graphs: the group's steps read their learning rate from this tensor of one element, on
  // its device, and not from the options. Undefined: from the options again.
  void set_lr_tensor(size_t group, torch::Tensor lr);
  // Hides the base class's, which leaves the group's options unchecked and incomplete. A group
  // added by that one is completed and checked by the next step, and removed where it is refused.
  void add_param_group(const torch::optim::OptimizerParamGroup& param_group);
  void save(torch::serialize::OutputArchive& archive) const override;
  // Checks that groups, shapes and options fit before anything is replaced.
  void load(torch::serialize::InputArchive& archive) override;
  // A table: parameter, shape, role, rule, logical matrices, update scale.
  std::string explain(bool full = false) const;

 private:
  // Completes and checks groups that have come since; removes the one that it refuses.
  void take_up_groups();

  size_t known_groups_ = 0;
  std::unique_ptr<Plan> plan_;  // derived from the groups, so it is not saved
  torch::Tensor grad_scale_, found_inf_;
  std::vector<torch::Tensor> lr_tensors_;  // by group; shorter than the groups where none is set
};

// The options that a preset class chooses; its name is one of those below. Raises c10::ValueError
// for another.
EquivariantOptions preset_options(const std::string& preset);

// The same class with the rule preset, so that bare parameters are enough. What `defaults` chooses
// beats what the preset does.
#define ERLANGEN_PRESET(Name)                                                                      \
  class Name : public Equivariant {                                                                \
   public:                                                                                         \
    explicit Name(const std::vector<torch::optim::OptimizerParamGroup>& param_groups,              \
                  EquivariantOptions defaults = {})                                                \
        : Equivariant(param_groups, (defaults.fill_from(preset_options(#Name)), defaults)) {}      \
    explicit Name(std::vector<torch::Tensor> params, EquivariantOptions defaults = {})             \
        : Equivariant(std::move(params), (defaults.fill_from(preset_options(#Name)), defaults)) {} \
  }

// torch.optim.Muon: spectral, weight decay 0.1, Jordan's coefficients, his scale by shape, and
// norms clamped at 1e-7. Beyond it: tensors of three dimensions are batches of matrices, those of
// four and five convolution kernels, flattened to one matrix [out, rest].
ERLANGEN_PRESET(Muon);
// Spectral with alpha 1: the polar direction times the nuclear norm (polargrad).
ERLANGEN_PRESET(PolarGrad);
ERLANGEN_PRESET(RowNorm);
ERLANGEN_PRESET(RightSpectral);
ERLANGEN_PRESET(LeftSpectral);
ERLANGEN_PRESET(Hybrid);

#undef ERLANGEN_PRESET

}  // namespace erlangen
