#include "routing/module_tree.h"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/moduledict.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/transformer.h>

#include <algorithm>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>

namespace erlangen {

namespace nn = torch::nn;

namespace {

template <typename... Types>
bool is_any(const nn::Module& module) {
  return (... || (dynamic_cast<const Types*>(&module) != nullptr));
}

template <typename... Types>
bool is_exactly(const nn::Module& module) {
  return (... || (typeid(module) == typeid(Types)));
}

// The class's name as Python would have it: "Linear" of torch::nn::LinearImpl.
std::string class_name(const nn::Module& module) {
  std::string name;
  int depth = 0;  // in the arguments of templates
  for (const char c : module.name()) {
    if (c == '<') ++depth;
    if (depth == 0) name += c;
    if (c == '>') --depth;
  }
  const size_t scope = name.rfind("::");
  if (scope != std::string::npos) name.erase(0, scope + 2);
  const std::string suffix = "Impl";
  if (name.size() > suffix.size() && name.ends_with(suffix)) {
    name.resize(name.size() - suffix.size());
  }
  return name;
}

template <typename... Convs>
std::optional<Convolution> convolution_among(const nn::Module& module) {
  std::optional<Convolution> result;
  const auto read = [&](const auto* conv) {
    if (!conv) return;
    const auto& options = conv->options;
    const auto& kernel = *options.kernel_size();
    const bool is_point =
        std::all_of(kernel.begin(), kernel.end(), [](int64_t size) { return size == 1; });
    result = {options.in_channels(), options.out_channels(), options.groups(), options.transposed(),
              is_point};
  };
  (read(dynamic_cast<const Convs*>(&module)), ...);
  return result;
}

Sizes stated_by(const nn::Module& module) {
  Sizes sizes;
  if (const auto* attention = dynamic_cast<const nn::MultiheadAttentionImpl*>(&module)) {
    sizes = {{"heads", attention->options.num_heads()},
             {"head_dim", attention->head_dim},
             {"width", attention->options.embed_dim()}};
  } else if (const auto* transformer = dynamic_cast<const nn::TransformerImpl*>(&module)) {
    sizes = {{"heads", transformer->options.nhead()}, {"width", transformer->options.d_model()}};
  }
  std::erase_if(sizes, [](const auto& entry) { return entry.second < 1; });
  return sizes;
}

// A class that is called linear and does something around the one linear map that it holds.
bool wraps_linear(const ModuleNode& node, const std::string& kind) {
  const auto held = node.module->named_children();
  const auto is_matrix = [](const auto& entry) { return entry.second.dim() > 1; };
  return kind.find("Linear") != std::string::npos && held.size() == 1 && held[0].value() &&
         is_any<nn::LinearImpl>(*held[0].value()) &&
         std::none_of(node.tensors.begin(), node.tensors.end(), is_matrix);
}

ModulePlace place_of(const ModuleNode& node) {
  const nn::Module& module = *node.module;
  ModulePlace place;
  place.kind = class_name(module);
  // Modules without a class of their own have a name.
  place.type =
      static_cast<int64_t>(typeid(module).hash_code() ^ std::hash<std::string>()(place.kind));
  place.is_list = is_exactly<nn::ModuleListImpl, nn::ModuleDictImpl>(module);
  place.is_container = place.is_list || is_exactly<nn::SequentialImpl>(module);
  if (is_linear(module)) {
    const torch::Tensor weight = weight_of(node);
    place.map.emplace();
    if (weight.defined()) {
      const size_t dims = is_convolution(module) ? 2 : weight.sizes().size();
      place.map = Shape(weight.sizes().begin(), weight.sizes().begin() + dims);
    }
  }
  place.stated = stated_by(module);
  for (const auto& [name, tensor] : node.tensors) {
    if (tensor.dim() == 3) place.stacks.insert(tensor.size(0));
  }
  return place;
}

}  // namespace

std::optional<Convolution> convolution_of(const nn::Module& module) {
  return convolution_among<nn::Conv1dImpl, nn::Conv2dImpl, nn::Conv3dImpl, nn::ConvTranspose1dImpl,
                           nn::ConvTranspose2dImpl, nn::ConvTranspose3dImpl>(module);
}

bool is_linear(const nn::Module& module) {
  const auto conv = convolution_of(module);
  return is_any<nn::LinearImpl>(module) ||
         (conv && !conv->is_transposed && conv->groups == 1 && conv->looks_at_points);
}

bool is_embedding(const nn::Module& module) {
  return is_any<nn::EmbeddingImpl, nn::EmbeddingBagImpl>(module);
}

bool is_convolution(const nn::Module& module) {
  const auto conv = convolution_of(module);
  return conv && !conv->is_transposed;
}

bool has_one_weight(const nn::Module& module) {
  return is_any<nn::LinearImpl, nn::BilinearImpl>(module) || is_embedding(module) ||
         convolution_of(module);
}

torch::Tensor weight_of(const ModuleNode& node) {
  for (const auto& [name, tensor] : node.tensors) {
    if (name == "weight") return tensor;
  }
  return {};
}

Layout storage_of(const nn::Module& module) {
  if (is_any<nn::BilinearImpl>(module)) return {LayoutStep::flatten()};
  const auto conv = convolution_of(module);
  if (!conv) return {};
  Layout layout = {LayoutStep::flatten()};
  if (conv->groups > 1) layout.push_back(LayoutStep::heads(conv->groups, -2));
  if (conv->is_transposed) layout.push_back(LayoutStep::transpose());
  return layout;
}

Model::Model(const nn::Module& root) {
  struct Visit {
    const nn::Module* module;
    size_t parent, user;    // where the module stands, and what holds it as routing sees it
    std::string key, name;  // under which names
  };
  std::unordered_map<const nn::Module*, size_t> index;
  std::vector<Visit> stack = {{&root, 0, 0, "", ""}};
  while (!stack.empty()) {
    const Visit visit = std::move(stack.back());
    stack.pop_back();
    const auto [found, is_new] = index.try_emplace(visit.module, nodes.size());
    if (is_new) {
      std::string path = visit.key;
      if (!nodes.empty() && !nodes[visit.parent].path.empty()) {
        path = nodes[visit.parent].path + "." + path;
      }
      ModuleNode node = {visit.module, std::move(path), {}, {}};
      for (const auto& item : visit.module->named_parameters(/*recurse=*/false)) {
        node.tensors.emplace_back(item.key(), item.value());
      }
      tree.push_back(place_of(node));
      const bool stands_for_child = !nodes.empty() && wraps_linear(node, tree.back().kind);
      nodes.push_back(std::move(node));
      const size_t place = found->second;
      const auto held = visit.module->named_children();
      for (size_t i = held.size(); i-- > 0;) {
        const nn::Module* child = held[i].value().get();
        const std::string& key = held[i].key();
        if (!child) continue;
        stack.push_back(stands_for_child ? Visit{child, place, visit.user, key, visit.name}
                                         : Visit{child, place, place, key, key});
      }
    }
    if (visit.key.empty()) continue;  // the root
    nodes[visit.parent].held.emplace_back(visit.key, found->second);
    auto& users = tree[found->second].users;
    const std::pair<size_t, std::string> user = {visit.user, visit.name};
    if (std::find(users.begin(), users.end(), user) == users.end()) users.push_back(user);
  }
  children = children_of(tree);
}

NamedTensors Model::named_parameters() const {
  NamedTensors result;
  std::unordered_set<const void*> seen;
  for (const ModuleNode& node : nodes) {
    for (const auto& [name, tensor] : node.tensors) {
      if (!seen.insert(tensor.unsafeGetTensorImpl()).second) continue;
      result.emplace_back(node.path.empty() ? name : node.path + "." + name, tensor);
    }
  }
  return result;
}

}  // namespace erlangen
