#include "routing/matching.h"

#include "routing/experts.h"
#include "routing/name_patterns.h"
#include "routing/named_maps.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <unordered_map>

namespace erlangen {

namespace {

struct Spelling {
  const Convention* convention;
  std::vector<std::string> names;
};

const std::vector<Spelling>& spellings_of(const std::string& first_name) {
  static const auto table = [] {
    std::unordered_map<std::string, std::vector<Spelling>> result;
    for (const Convention& convention : conventions()) {
      for (const std::string& spelling : convention.spellings) {
        std::vector<std::string> names = names_in(spelling);
        result[names.front()].push_back({&convention, names});
      }
    }
    return result;
  }();
  static const std::vector<Spelling> none;
  const auto found = table.find(first_name);
  return found == table.end() ? none : found->second;
}

// The maps that stand under a spelling's names, each with its copies; empty if one is missing.
std::vector<std::pair<size_t, const std::vector<size_t>*>> parts_named(
    const NamedMaps& maps, const std::vector<std::string>& names) {
  std::vector<std::pair<size_t, const std::vector<size_t>*>> result;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == "-") continue;
    const std::vector<size_t>* places = maps.find(names[i]);
    if (!places) return {};
    result.emplace_back(i, places);
  }
  return result;
}

// The spellings of which every name is there, but for those that leave out a part which a longer
// one names: what is two thirds of a gated MLP is no MLP.
std::vector<Spelling> candidates(const NamedMaps& maps) {
  std::vector<Spelling> found;
  std::vector<std::set<std::string>> names;
  for (const auto& [first_name, places] : maps.entries()) {
    for (const Spelling& spelling : spellings_of(first_name)) {
      if (parts_named(maps, spelling.names).empty()) continue;
      found.push_back(spelling);
      names.emplace_back(spelling.names.begin(), spelling.names.end()).erase("-");
    }
  }
  std::vector<Spelling> result;
  for (size_t i = 0; i < found.size(); ++i) {
    const bool is_part = std::any_of(names.begin(), names.end(), [&](const auto& other) {
      return names[i].size() < other.size() &&
             std::includes(other.begin(), other.end(), names[i].begin(), names[i].end());
    });
    if (!is_part) result.push_back(found[i]);
  }
  return result;
}

// Two square maps beside a third that could be either: part of something else.
bool is_torn_out(const ModuleTree& tree, const NamedMaps& maps, const Spelling& spelling) {
  const auto& names = spelling.names;
  const auto parts = parts_named(maps, names);
  if (parts.size() != 2 || names[0].find('.') != std::string::npos) return false;
  const auto shape_of = [&](const std::vector<size_t>& places) -> const Shape& {
    return *tree[places.front()].map;
  };
  const Shape& shape = shape_of(*parts[0].second);
  if (shape.size() != 2 || shape[0] != shape[1] || shape_of(*parts[1].second) != shape) {
    return false;
  }
  const auto is_output = [&](const auto& part) {
    return spelling.convention->parts[part.first].is_output;
  };
  if (std::none_of(parts.begin(), parts.end(), is_output)) return false;
  return std::any_of(maps.entries().begin(), maps.entries().end(), [&](const auto& entry) {
    const auto& [name, places] = entry;
    return name.find('.') == std::string::npos && shape_of(places) == shape &&
           std::find(names.begin(), names.end(), name) == names.end();
  });
}

bool is_chain(const std::vector<Shape>& shapes) {
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (shapes[i].size() != 2 || (i > 0 && shapes[i - 1][0] != shapes[i][1])) return false;
  }
  return shapes.size() > 1;
}

// The maps of a class that is called an MLP: two, into and out of its neurons, or three.
std::map<size_t, Recognised> in_mlp_classes(const ModuleTree& tree, const Children& children,
                                            const MapsUnder& maps_under) {
  std::map<size_t, Recognised> found;
  for (const auto& [anchor, maps] : maps_under) {
    if (!is_found("mlp_classes", tree[anchor].kind)) continue;
    const auto& users = tree[anchor].users;
    const auto in_list = [&](const auto& user) { return tree[user.first].is_list; };
    // One of a list: of experts, for all that the class says.
    if (std::any_of(users.begin(), users.end(), in_list)) continue;
    std::vector<size_t> inside;
    for (const auto& [name, places] : maps.entries()) inside.push_back(places.front());
    std::sort(inside.begin(), inside.end());
    if (std::adjacent_find(inside.begin(), inside.end()) != inside.end()) continue;
    std::vector<Shape> shapes;
    Chosen chosen;
    for (size_t i = 0; i < inside.size(); ++i) {
      shapes.push_back(*tree[inside[i]].map);
      chosen.emplace_back(i, inside[i]);
    }
    const bool all_alike = std::all_of(shapes.begin(), shapes.end(),
                                       [&](const Shape& shape) { return shape == shapes[0]; });
    if (all_alike && inside.size() != 2) continue;  // w1, w2, w3 or gate, up, down, or a chain?
    Reading reading;
    for (const Convention& convention : mlps_by_order(inside.size())) {
      if (reading.findings.empty()) reading = read(tree, children, convention, anchor, chosen);
    }
    for (auto& [place, finding] : reading.findings) found[place] = std::move(finding);
    // In, out, in may as well be a gated MLP: nothing is said of it.
    if (reading.findings.empty() && is_chain(shapes) && shapes.front() != shapes.back()) {
      for (const size_t place : inside) found[place] = {"dense", kChain, {}};
    }
  }
  return found;
}

std::map<size_t, Recognised> by_conventions(const ModuleTree& tree, const Children& children,
                                            const MapsUnder& maps_under) {
  // How much a finding counts: is it sure, how many parts, has it a layout, how narrow is its
  // module.
  using Rank = std::tuple<bool, size_t, bool, size_t>;
  std::map<size_t, std::pair<Rank, Recognised>> best;
  for (const auto& [anchor, maps] : maps_under) {
    for (const Spelling& spelling : candidates(maps)) {
      if (is_torn_out(tree, maps, spelling)) continue;
      const auto parts = parts_named(maps, spelling.names);
      size_t versions = 0;
      for (const auto& [part, places] : parts) versions = std::max(versions, places->size());
      for (size_t version = 0; version < versions; ++version) {
        Chosen chosen;
        for (const auto& [part, places] : parts) {
          chosen.emplace_back(part, (*places)[std::min(version, places->size() - 1)]);
        }
        Reading reading = read(tree, children, *spelling.convention, anchor, chosen);
        for (auto& [place, finding] : reading.findings) {
          const Rank rank = {reading.is_sure, chosen.size(), !finding.layout.empty(), anchor};
          const auto [found, is_new] = best.try_emplace(place, rank, finding);
          if (!is_new && rank > found->second.first) found->second = {rank, finding};
        }
      }
    }
  }
  std::map<size_t, Recognised> found = in_mlp_classes(tree, children, maps_under);
  for (auto& [place, ranked] : best) found[place] = std::move(ranked.second);
  return found;
}

}  // namespace

std::map<size_t, Recognised> recognise_maps(const ModuleTree& tree) {
  const MapsUnder maps_under = named_maps(tree);
  const Children children = children_of(tree);
  std::map<size_t, Recognised> found = by_conventions(tree, children, maps_under);
  for (auto& [place, finding] : experts_apart(tree, children, maps_under, found)) {
    found[place] = std::move(finding);
  }
  return found;
}

}  // namespace erlangen
