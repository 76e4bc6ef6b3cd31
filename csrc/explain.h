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

// A line a parameter: name, shape, role, rule with what modifies it, logical matrices, and the
// factor on its learning rate (update_scale times the scale by shape). `options` are complete.
std::string explain(const std::vector<ExplainGroup>& groups);

}  // namespace erlangen
