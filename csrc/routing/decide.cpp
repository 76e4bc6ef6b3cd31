#include "check.h"
#include "routing/findings.h"
#include "routing/matching.h"
#include "routing/name_patterns.h"

#include <torch/nn/modules/activation.h>

#include <algorithm>
#include <set>

namespace erlangen {

namespace {

using Findings = std::unordered_map<const void*, Finding>;
// The modules that use a parameter, each with what it makes of it.
using Uses = std::vector<std::pair<size_t, Finding>>;

const void* key_of(const torch::Tensor& tensor) { return tensor.unsafeGetTensorImpl(); }

// Whether a norm over the outputs of a convolution is defined right after it.
bool precedes_norm(const Model& model, size_t place) {
  const auto has_size = [&](const torch::Tensor& tensor) {
    return tensor.defined() && tensor.dim() > 0 && tensor.size(0) == model.tree[place].map->at(0);
  };
  for (const auto& [user, name] : model.tree[place].users) {
    const auto& held = model.nodes[user].held;
    for (size_t i = 0; i + 1 < held.size(); ++i) {
      const size_t next = held[i + 1].second;
      if (held[i].second != place || model.tree[next].kind.find("Norm") == std::string::npos) {
        continue;
      }
      for (const auto& [tensor_name, tensor] : model.nodes[next].tensors) {
        if (has_size(tensor)) return true;
      }
      for (const auto& item : model.nodes[next].module->named_buffers(/*recurse=*/false)) {
        if (has_size(item.value())) return true;
      }
    }
  }
  return false;
}

// Whether the place is in a module that is called a router.
bool is_in_router(const ModuleTree& tree, size_t place) {
  for (auto owner = owner_of(tree, place); owner; owner = owner_of(tree, *owner)) {
    if (is_found("router_classes", tree[*owner].kind)) return true;
  }
  return false;
}

// Whether a Softmax stands beside a router's map. No other code can be read here: experts that are
// scored one by one, as by a sigmoid, share no shift.
bool has_softmax_beside(const Model& model, size_t place) {
  const auto holds_softmax = [&](size_t at) {
    return std::any_of(
        model.children[at].begin(), model.children[at].end(), [&](const auto& child) {
          const auto* softmax =
              model.nodes[child.second].module->template as<torch::nn::SoftmaxImpl>();
          return softmax && softmax->options.dim() != 0;  // over the tokens
        });
  };
  auto owner = owner_of(model.tree, place);
  if (owner && holds_softmax(*owner)) return true;
  if (!owner || !is_found("router_classes", model.tree[*owner].kind)) return false;
  owner = owner_of(model.tree, *owner);
  return owner && holds_softmax(*owner);
}

// Every finding about every parameter: one for each use.
std::unordered_map<const void*, Uses> collect(const Model& model) {
  const std::map<size_t, Recognised> of_maps = recognise_maps(model.tree);
  const Findings of_tensors = recognise_tensors(model);
  std::unordered_map<const void*, Uses> findings;
  for (size_t place = 0; place < model.nodes.size(); ++place) {
    const auto& module = *model.nodes[place].module;
    const auto of_map = of_maps.find(place);
    const torch::Tensor weight = weight_of(model.nodes[place]);
    for (auto& [tensor, by_type] : judge(model, place)) {
      Finding found = std::move(by_type);
      const auto of_tensor = of_tensors.find(key_of(tensor));
      bool is_map = of_map != of_maps.end() && tensor.is_same(weight);
      // Of a router's chain the last map may be the one onto the experts.
      if (is_map && of_map->second.why == kChain && is_in_router(model.tree, place)) is_map = false;
      if (found.grade == Grade::declared) {
        // Nothing says it better.
      } else if (of_tensor != of_tensors.end()) {
        found = of_tensor->second;
      } else if (is_map) {
        Layout layout = storage_of(module);
        const Recognised& recognised = of_map->second;
        layout.insert(layout.end(), recognised.layout.begin(), recognised.layout.end());
        found = {recognised.role, Grade::recognised, recognised.why, std::move(layout)};
        if (found.role == "router" && !has_softmax_beside(model, place)) found.center = false;
      } else if (found.grade == Grade::assumed && found.role == "dense" && is_convolution(module) &&
                 precedes_norm(model, place)) {
        found = {"dense", Grade::recognised, "a convolution with its norm", found.layout};
      }
      findings[key_of(tensor)].emplace_back(place, std::move(found));
    }
  }
  return findings;
}

Finding merge(const Model& model, const Uses& uses) {
  const auto all_say = [&](const Finding& said, bool sure_only) {
    return std::all_of(uses.begin(), uses.end(), [&](const auto& use) {
      return (sure_only && use.second.grade == Grade::assumed) || use.second.says_as(said);
    });
  };
  const Finding& best =
      std::min_element(uses.begin(), uses.end(), [](const auto& a, const auto& b) {
        return a.second.grade < b.second.grade;
      })->second;
  if (all_say(best, false)) return best;
  // A lookup table that is also a linear map is a tied head, whoever uses it.
  const auto is_table = [&](const auto& use) {
    return is_embedding(*model.nodes[use.first].module);
  };
  const auto reads_table = [&](const auto& use) {
    return is_table(use) || is_linear(*model.nodes[use.first].module);
  };
  const auto table = std::find_if(uses.begin(), uses.end(), is_table);
  if (table != uses.end() && std::all_of(uses.begin(), uses.end(), reads_table)) {
    return table->second;
  }
  if (best.grade != Grade::assumed && all_say(best, true)) return best;
  std::set<std::string> roles;
  // How it is stored is no opinion: [out, in] for all that follows.
  std::optional<Layout> layout;
  for (const auto& [place, finding] : uses) {
    const Layout storage = storage_of(*model.nodes[place].module);
    roles.insert(finding.role);
    layout = !layout || *layout == storage ? storage : Layout();
  }
  std::string role = *roles.begin(), why = "shared by modules that part it differently";
  if (roles.size() > 1) {
    role = "dense";
    why = "shared by modules that make different things of it: " +
          join(std::vector<std::string>(roles.begin(), roles.end()));
  }
  return {role, Grade::assumed, why, std::move(*layout)};
}

// The linear map onto the tokens: by its name and that of the table, or, as the last map of the
// model, by the table's shape alone.
void add_head(const Model& model, const std::unordered_map<const void*, Uses>& findings,
              Findings& decisions) {
  std::optional<size_t> table;
  std::vector<size_t> maps;
  for (size_t place = 0; place < model.nodes.size(); ++place) {
    const torch::Tensor weight = weight_of(model.nodes[place]);
    if (!weight.defined() || weight.dim() < 2) continue;
    if (model.tree[place].map) maps.push_back(place);
    const bool is_larger = !table || weight.numel() > weight_of(model.nodes[*table]).numel();
    if (is_embedding(*model.nodes[place].module) && is_larger) table = place;
  }
  if (!table) return;
  const torch::Tensor tokens = weight_of(model.nodes[*table]);
  for (const auto& [place, finding] : findings.at(key_of(tokens))) {
    if (model.tree[place].map) return;  // tied
  }
  const auto decision_of = [&](size_t place) -> Finding& {
    return decisions.at(key_of(weight_of(model.nodes[place])));
  };
  const auto is_free = [&](size_t place) {
    const Finding& finding = decision_of(place);
    const bool is_unsure = finding.grade == Grade::assumed || finding.why == kChain;
    return finding.role == "dense" && is_unsure;
  };
  const auto is_called = [&](size_t place, const char* pattern) {
    const auto& users = model.tree[place].users;
    return std::any_of(users.begin(), users.end(),
                       [&](const auto& user) { return is_all(pattern, user.second); });
  };
  const int64_t rows = tokens.size(0), width = tokens.size(1);
  const bool is_of_tokens = is_called(*table, "token_tables");
  for (const size_t place : maps) {
    const Shape& shape = *model.tree[place].map;
    const bool is_called_so =
        is_called(place, "heads") || (is_of_tokens && is_called(place, "heads_beside_tokens"));
    if (!is_free(place) || !is_called_so) continue;
    if (shape.size() != 2 || shape[1] != width || !is_padded(shape[0], rows)) {
      continue;
    }
    decision_of(place) = {"lm_head", Grade::recognised,
                          "called a head, with a row for each of the table's tokens",
                          storage_of(*model.nodes[place].module)};
    return;
  }
  if (!maps.empty() && rows != width && is_free(maps.back()) &&
      *model.tree[maps.back()].map == Shape{rows, width}) {
    decision_of(maps.back()) = {"lm_head", Grade::assumed, "the last map, in the table's shape",
                                storage_of(*model.nodes[maps.back()].module), false};
  }
}

}  // namespace

bool is_padded(int64_t rows, int64_t size) {
  const int64_t surplus = rows - size;
  return surplus == 0 || (surplus > 0 && rows % 8 == 0 && surplus < 1024 && 2 * surplus <= size);
}

std::unordered_map<const void*, Finding> decide(const Model& model) {
  const auto findings = collect(model);
  Findings decisions;
  for (const auto& [key, uses] : findings) decisions.emplace(key, merge(model, uses));
  add_head(model, findings, decisions);
  for (auto& [key, finding] : decisions) {
    const ModuleNode& node = model.nodes[findings.at(key).front().first];
    const torch::Tensor weight = weight_of(node);
    if (has_one_weight(*node.module) && weight.defined() && key_of(weight) == key) {
      finding.storage = storage_of(*node.module);
    } else if (!finding.layout.empty() && finding.layout.front() == LayoutStep::transpose()) {
      finding.storage = {LayoutStep::transpose()};
    }
  }
  return decisions;
}

}  // namespace erlangen
