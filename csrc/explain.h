// The table that optimizer.explain() shows.
#pragma once

#include <ATen/core/Tensor.h>
#include <erlangen/options.h>

#include <string>
#include <vector>

namespace erlangen {

struct ExplainGroup {
  EquivariantOptions options;
  std::vector<at::Tensor> params;
};

// Name, shape, role, rule with what modifies it, logical matrices, the factor on the learning rate
// (update_scale times the scale by shape), and why it has its role. `options` are complete. One
// line for all parameters that differ in the numbers of their names alone; with `full` a line each.
std::string explain(const std::vector<ExplainGroup>& groups, bool full);

}  // namespace erlangen
