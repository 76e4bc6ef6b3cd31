#include "routing/experts.h"
#include "routing/findings.h"
#include "routing/name_patterns.h"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <set>

namespace erlangen {

namespace nn = torch::nn;

namespace {

using Findings = std::unordered_map<const void*, Finding>;

template <typename Module, typename Read>
void read_as(const nn::Module& module, const Read& read) {
  if (const auto* typed = dynamic_cast<const Module*>(&module)) read(*typed);
}

void add_widths(const nn::Module& module, std::set<int64_t>& widths) {
  const auto of_linear = [&](const auto& m) {
    widths.insert({m.options.in_features(), m.options.out_features()});
  };
  const auto of_table = [&](const auto& m) { widths.insert(m.options.embedding_dim()); };
  read_as<nn::LinearImpl>(module, of_linear);
  read_as<nn::BilinearImpl>(module,
                            [&](const auto& m) { widths.insert(m.options.out_features()); });
  if (const auto conv = convolution_of(module)) widths.insert(conv->out);
  read_as<nn::EmbeddingImpl>(module, of_table);
  read_as<nn::EmbeddingBagImpl>(module, of_table);
  read_as<nn::MultiheadAttentionImpl>(module,
                                      [&](const auto& m) { widths.insert(m.options.embed_dim()); });
  read_as<nn::LayerNormImpl>(module, [&](const auto& m) {
    const auto& shape = m.options.normalized_shape();
    if (shape.size() == 1) widths.insert(shape[0]);
  });
}

// Tables [.., T, d] with T > 1 whose width d something beside them has too.
void add_positions(const NamedTensors& raw, const std::set<int64_t>& widths, Findings& found) {
  for (const auto& [name, tensor] : raw) {
    const bool has_rows = tensor.numel() > 0 && tensor.size(-2) > 1;
    if (has_rows && widths.count(tensor.size(-1))) {
      found[tensor.unsafeGetTensorImpl()] = {"embedding", Grade::recognised, name + ", a table"};
    }
  }
}

void add_stacks(const NamedTensors& raw, const std::vector<Shape>& maps, Findings& found) {
  std::map<std::string, Shape> shapes;
  for (const auto& [name, tensor] : raw) shapes.emplace(name, tensor.sizes().vec());
  std::set<int64_t> counts;  // rows of the maps around, a router's among them
  for (const Shape& map : maps) {
    if (map[0] > 1) counts.insert(map[0]);
  }
  const auto stacks = recognise_stacks(shapes, counts, maps, std::nullopt);
  for (const auto& [name, tensor] : raw) {
    const auto stack = stacks.find(name);
    if (stack == stacks.end()) continue;
    // Gate and up in one: nothing says here whether as halves or interleaved.
    Layout layout;
    if (stack->second.is_transposed) layout.push_back(LayoutStep::transpose());
    found[tensor.unsafeGetTensorImpl()] = {stack->second.role, Grade::recognised,
                                           "a stack of experts", std::move(layout)};
  }
}

// What is around a module: the sizes that layers have for widths, and the maps [out, in].
struct Around {
  std::set<int64_t> widths;
  std::vector<Shape> maps;
};

Around look_around(const Model& model, size_t owner) {
  Around result;
  for (const size_t near : all_under(model.children, owner)) {
    add_widths(*model.nodes[near].module, result.widths);
    const auto& map = model.tree[near].map;
    if (map && map->size() == 2) result.maps.push_back(*map);
  }
  return result;
}

}  // namespace

std::unordered_map<const void*, Finding> recognise_tensors(const Model& model) {
  Findings found;
  std::map<size_t, Around> around;  // by what owns the modules
  for (size_t place = 0; place < model.nodes.size(); ++place) {
    const bool has_weight = has_one_weight(*model.nodes[place].module);
    NamedTensors tables, stacks;
    for (const auto& [name, tensor] : model.nodes[place].tensors) {
      if (tensor.dim() < 2 || (has_weight && name == "weight")) continue;
      if (is_found("positions", name)) tables.emplace_back(name, tensor);
      if (tensor.dim() == 3) stacks.emplace_back(name, tensor);
    }
    for (const auto& [name, child] : model.children[place]) {  // as modules of their own
      const torch::Tensor weight = weight_of(model.nodes[child]);
      if (weight.defined() && weight.dim() == 3) stacks.emplace_back(name, weight);
    }
    if (tables.empty() && stacks.empty()) continue;
    const auto owner = owner_of(model.tree, place);
    const size_t top = owner.value_or(place);
    auto near = around.find(top);
    if (near == around.end()) near = around.emplace(top, look_around(model, top)).first;
    add_positions(tables, near->second.widths, found);
    add_stacks(stacks, owner ? near->second.maps : std::vector<Shape>(), found);
  }
  return found;
}

}  // namespace erlangen
