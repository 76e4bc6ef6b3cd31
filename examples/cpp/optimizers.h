// The optimizers to compare, and the learning rate they share.
#pragma once

#include <erlangen/erlangen.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <memory>
#include <utility>
#include <vector>

#include "model.h"
#include "options.h"

// The optimizers whose steps together update every parameter once.
using Optimizers = std::vector<std::unique_ptr<torch::optim::Optimizer>>;

// AdamW over those of the parameters that are left to it: decayed ones and others.
inline std::unique_ptr<torch::optim::Optimizer> adamw(std::vector<torch::Tensor> decayed,
                                                      std::vector<torch::Tensor> others,
                                                      const Options& o) {
  const auto options = torch::optim::AdamWOptions(o.lr).betas({0.9, 0.95});
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto add = [&](std::vector<torch::Tensor> params, double weight_decay) {
    if (params.empty()) return;
    auto own = std::make_unique<torch::optim::AdamWOptions>(options);
    own->weight_decay(weight_decay);
    groups.emplace_back(std::move(params), std::move(own));
  };
  add(std::move(decayed), o.weight_decay);
  add(std::move(others), 0.0);
  return std::make_unique<torch::optim::AdamW>(groups, options);
}

// All of them decay the matrices between embedding and LM head and nothing else, as Equivariant
// does by default.
inline Optimizers make_optimizers(const LanguageModel& model, const Options& o) {
  const auto groups = erlangen::param_groups(*model, overrides(o.model));
  Optimizers optimizers;
  if (o.optimizer == "equivariant") {
    auto optimizer = std::make_unique<erlangen::Equivariant>(
        groups, erlangen::EquivariantOptions(o.lr).weight_decay(o.weight_decay));
    std::cout << optimizer->explain() << "\n";
    optimizers.push_back(std::move(optimizer));
    return optimizers;
  }
  std::vector<torch::Tensor> matrices, stacks, rest;
  for (const auto& group : groups) {
    // Where the role leaves the decay open it is the caller's; else the role has set it to 0.
    const bool hidden =
        !static_cast<const erlangen::EquivariantOptions&>(group.options()).is_set("weight_decay");
    for (const auto& param : group.params()) {
      (!hidden ? rest : param.dim() == 2 ? matrices : stacks).push_back(param);
    }
  }
  if (o.optimizer == "muon") {
    // Whole matrices, and no stacks of experts: what torch.optim.Muon takes.
    optimizers.push_back(std::make_unique<erlangen::Muon>(std::exchange(matrices, {}),
                                                          erlangen::EquivariantOptions(o.lr)
                                                              .weight_decay(o.weight_decay)
                                                              .adjust_lr_fn("match_rms_adamw")));
  }
  matrices.insert(matrices.end(), stacks.begin(), stacks.end());
  optimizers.push_back(adamw(matrices, rest, o));
  return optimizers;
}

// Linear warm-up, constant, then linear to zero. The rate depends on the step alone, so that a
// resumed run needs no more than to begin at its step: LibTorch's schedulers cannot be saved.
class Schedule : public torch::optim::LRScheduler {
 public:
  // Sets the learning rate of step `first_step`; each step() sets that of the next one.
  Schedule(torch::optim::Optimizer& optimizer, const Options& o, int64_t first_step)
      : LRScheduler(optimizer), options_(o) {
    step_count_ = static_cast<unsigned>(first_step);
    step();
  }

 private:
  // The same for all groups: what a group needs beside it is in its update_scale.
  std::vector<double> get_lrs() override {
    const double step = step_count_, decay_steps = options_.decay_fraction * options_.steps;
    const double rising = (step + 1) / std::max<int64_t>(options_.warmup_steps, 1);
    const double falling = (options_.steps - step) / (decay_steps + 1);
    const double factor = std::min({rising, decay_steps > 0 ? falling : 1.0, 1.0});
    return std::vector<double>(get_current_lrs().size(), options_.lr * factor);
  }

  Options options_;
};
