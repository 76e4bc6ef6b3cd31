#include "routing/experts.h"

#include "routing/name_patterns.h"

#include <algorithm>
#include <optional>

namespace erlangen {

namespace {

void add_experts(const ModuleTree& tree, const Children& children, size_t anchor,
                 const NamedMaps& maps, const std::map<size_t, Recognised>& of_maps,
                 std::map<size_t, Recognised>& found) {
  std::vector<std::vector<size_t>> lists;  // of modules that are called experts
  std::set<int64_t> sizes;                 // their lengths, and those of stacks beside them
  std::set<int64_t> counts = tree[anchor].experts;
  for (const auto& [name, child] : children[anchor]) {
    if (!is_found("experts", name)) continue;
    std::vector<size_t> entries;
    bool alike = true;
    sizes.insert(tree[child].stacks.begin(), tree[child].stacks.end());
    for (const auto& [key, entry] : children[child]) {
      entries.push_back(entry);
      alike = alike && tree[entry].type == tree[entries.front()].type;
      sizes.insert(tree[entry].stacks.begin(), tree[entry].stacks.end());
    }
    for (const size_t place : all_under(children, child)) {
      if (tree[place].own_experts) counts.insert(*tree[place].own_experts);
    }
    if (alike && entries.size() > 1) {
      sizes.insert(static_cast<int64_t>(entries.size()));
      lists.push_back(std::move(entries));
    }
  }
  const auto& entries = maps.entries();
  const auto names_experts = [&] {
    return std::any_of(entries.begin(), entries.end(),
                       [](const auto& entry) { return is_found("experts", entry.first); });
  };
  for (const auto& [name, places] : entries) {
    const Shape& shape = *tree[places.front()].map;
    if (shape.empty() || shape[0] < 2 || !is_all("routers", name)) continue;
    const bool is_stated = counts.count(shape[0]) && (!sizes.empty() || names_experts());
    if (!sizes.count(shape[0]) && !is_stated) continue;
    counts.insert(shape[0]);
    for (const size_t place : places) {
      found[place] = {"router", std::to_string(shape[0]) + " rows, one for each expert", {}};
    }
  }
  for (const std::vector<size_t>& experts : lists) {
    if (!counts.count(static_cast<int64_t>(experts.size()))) continue;
    for (const size_t expert : experts) {
      for (const size_t place : all_under(children, expert)) {
        const auto of_map = of_maps.find(place);
        if (of_map == of_maps.end()) continue;
        Recognised finding = of_map->second;
        if (finding.role != "mlp_in" && finding.role != "mlp_out") continue;
        finding.role = finding.role == "mlp_in" ? "expert_in" : "expert_out";
        finding.why = "an expert's MLP";
        found[place] = std::move(finding);
      }
    }
  }
}

}  // namespace

std::map<size_t, Recognised> experts_apart(const ModuleTree& tree, const Children& children,
                                           const MapsUnder& maps_under,
                                           const std::map<size_t, Recognised>& of_maps) {
  std::map<size_t, Recognised> found;
  for (const auto& [anchor, maps] : maps_under) {
    add_experts(tree, children, anchor, maps, of_maps, found);
  }
  return found;
}

std::map<std::string, RecognisedStack> recognise_stacks(const std::map<std::string, Shape>& tensors,
                                                        const std::set<int64_t>& counts,
                                                        const std::vector<Shape>& maps,
                                                        std::optional<int64_t> width) {
  for (const Convention& convention : expert_stacks()) {
    for (const std::string& spelling : convention.spellings) {
      const std::vector<std::string> names = names_in(spelling);
      std::vector<Shape> shapes;
      for (const std::string& name : names) {
        const auto found = tensors.find(name);
        if (found != tensors.end() && found->second.size() == 3) shapes.push_back(found->second);
      }
      const auto is_counted = [&](const Shape& shape) { return counts.count(shape[0]) > 0; };
      if (shapes.size() != names.size() || std::none_of(shapes.begin(), shapes.end(), is_counted)) {
        continue;
      }
      // What the experts read: the model's width, or that of maps onto as many logits.
      std::set<int64_t> widths;
      if (width) widths.insert(*width);
      for (const Shape& map : maps) {
        if (!width && map[0] == shapes[0][0]) widths.insert(map[1]);
      }
      const auto fits = [&](bool is_transposed) {
        std::vector<Equation> equations;
        for (size_t i = 0; i < shapes.size(); ++i) {
          Shape shape = shapes[i];
          if (is_transposed) std::swap(shape[1], shape[2]);
          for (size_t j = 0; j < 3; ++j) {
            equations.emplace_back(&convention.parts[i].shape[j], shape[j]);
          }
        }
        const auto solved = solve(std::move(equations), {});
        return solved && (widths.empty() || widths.count(solved->at("_d")));
      };
      const bool plain = fits(false), transposed = !convention.names_order && fits(true);
      if (plain == transposed) continue;
      std::map<std::string, RecognisedStack> found;
      for (size_t i = 0; i < names.size(); ++i) {
        const Part& part = convention.parts[i];
        found[names[i]] = {part.role, transposed, !part.layout.empty()};
      }
      return found;
    }
  }
  return {};
}

}  // namespace erlangen
