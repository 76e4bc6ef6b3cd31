// A torch::nn model as routing sees it.
#pragma once

#include "routing/places.h"

#include <erlangen/options.h>
#include <torch/nn/module.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace erlangen {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

// A module with the tensors that it holds itself; `path` is its first name in the model.
struct ModuleNode {
  const torch::nn::Module* module;
  std::string path;
  NamedTensors tensors;
  std::vector<std::pair<std::string, size_t>> held;  // modules in it, by name
};

struct Model {
  explicit Model(const torch::nn::Module& module);

  std::vector<ModuleNode> nodes;  // in the order of definition, a shared module once
  ModuleTree tree;                // the same for the conventions
  Children children;

  // Every parameter once, under its first name, in the order of named_parameters(), which itself
  // takes exponentially long where sharing is nested.
  NamedTensors named_parameters() const;
};

// What routing asks of any of torch's convolutions.
struct Convolution {
  int64_t in, out, groups;
  bool is_transposed, looks_at_points;
};
std::optional<Convolution> convolution_of(const torch::nn::Module& module);

// Whether the module is one linear map: Linear, or a convolution that looks at single points.
bool is_linear(const torch::nn::Module& module);
bool is_embedding(const torch::nn::Module& module);
bool is_convolution(const torch::nn::Module& module);  // and none that is transposed
// Whether modules of this type have one weight of two or more dimensions.
bool has_one_weight(const torch::nn::Module& module);

// The tensor called "weight"; undefined if there is none.
torch::Tensor weight_of(const ModuleNode& node);
// The layout that makes a module's weight [out, in], whatever it is for. Of convolutions [out, in /
// groups, k, ...], of transposed ones [in, out / groups, k, ...]: each group is a linear map of its
// own. Of Bilinear [out, in1, in2], whose columns are the products of two inputs.
Layout storage_of(const torch::nn::Module& module);

}  // namespace erlangen
