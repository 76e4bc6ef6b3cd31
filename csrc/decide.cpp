#include "findings.h"

#include <torch/nn/modules/conv.h>

#include <algorithm>
#include <set>

namespace erlangen {

namespace {

using Findings = std::unordered_map<const void*, Finding>;
// The modules that use a parameter, each with what it makes of it.
using Uses = std::vector<std::pair<size_t, Finding>>;

const void* key_of(const torch::Tensor& tensor) { return tensor.unsafeGetTensorImpl(); }

// Whether a norm over the channels of a convolution is defined in the same module.
bool has_norm_beside(const Model& model, size_t place) {
  const Shape& shape = *model.tree[place].map;
  const auto has_size = [&](const torch::Tensor& tensor) {
    return tensor.defined() && tensor.dim() > 0 &&
           std::find(shape.begin(), shape.end(), tensor.size(0)) != shape.end();
  };
  for (size_t sibling = 0; sibling < model.nodes.size(); ++sibling) {
    if (model.tree[sibling].kind.find("Norm") == std::string::npos) continue;
    const auto is_beside = [&](const auto& user) {
      const auto& users = model.tree[place].users;
      return std::any_of(users.begin(), users.end(),
                         [&](const auto& own) { return own.first == user.first; });
    };
    const auto& users = model.tree[sibling].users;
    if (std::none_of(users.begin(), users.end(), is_beside)) continue;
    for (const auto& [name, tensor] : model.nodes[sibling].tensors) {
      if (has_size(tensor)) return true;
    }
    for (const auto& item : model.nodes[sibling].module->named_buffers(/*recurse=*/false)) {
      if (has_size(item.value())) return true;
    }
  }
  return false;
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
      const bool is_map = of_map != of_maps.end() && tensor.is_same(weight);
      if (is_map && found.grade != Grade::declared) {
        Layout layout = storage_of(module);
        const Recognised& recognised = of_map->second;
        layout.insert(layout.end(), recognised.layout.begin(), recognised.layout.end());
        found = {recognised.role, Grade::recognised, recognised.why, std::move(layout)};
      } else if (of_tensor != of_tensors.end()) {
        found = of_tensor->second;
      } else if (found.grade == Grade::assumed && found.role == "dense" && is_convolution(module) &&
                 has_norm_beside(model, place)) {
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
  bool same_layout = true;
  for (const auto& [place, finding] : uses) {
    roles.insert(finding.role);
    same_layout = same_layout && finding.layout == best.layout;
  }
  if (roles.size() == 1 && !same_layout) {
    return {*roles.begin(), Grade::assumed, "shared by modules that part it differently"};
  }
  std::string all;
  for (const std::string& role : roles) all += (all.empty() ? "" : ", ") + role;
  return {roles.size() == 1 ? *roles.begin() : "dense", Grade::assumed,
          "shared by modules that make different things of it: " + all};
}

// The linear map onto the tokens: by its name and that of the table, or, as the last map of the
// model, by the table's shape alone.
void add_head(const Model& model, const std::unordered_map<const void*, Uses>& findings,
              Findings& decisions) {
  std::optional<size_t> table;
  std::vector<size_t> maps;
  for (size_t place = 0; place < model.nodes.size(); ++place) {
    const torch::Tensor weight = weight_of(model.nodes[place]);
    if (!weight.defined()) continue;
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
    return finding.role == "dense" && finding.grade == Grade::assumed;
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
    if (shape.size() != 2 || shape[1] != width || shape[0] < rows || shape[0] >= rows + 1024) {
      continue;
    }
    decision_of(place) = {"lm_head", Grade::recognised,
                          "called a head, in the shape of the table of tokens",
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

std::unordered_map<const void*, Finding> decide(const Model& model) {
  const auto findings = collect(model);
  Findings decisions;
  for (const auto& [key, uses] : findings) decisions.emplace(key, merge(model, uses));
  add_head(model, findings, decisions);
  return decisions;
}

}  // namespace erlangen
