#include "matching.h"

#include <algorithm>
#include <iterator>
#include <sstream>
#include <tuple>
#include <unordered_map>

namespace erlangen {

namespace {

constexpr int kDepth = 3;  // of the names of a part, in components

// The linear maps under a module by their names there; several under one name are copies.
class NamedMaps {
 public:
  using Entry = std::pair<std::string, std::vector<size_t>>;

  void add(const std::string& name, size_t place) {
    const auto [found, is_new] = index_.try_emplace(name, entries_.size());
    if (is_new) entries_.push_back({name, {}});
    std::vector<size_t>& places = entries_[found->second].second;
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
  }

  const std::vector<size_t>* find(const std::string& name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &entries_[found->second].second;
  }

  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;  // in the order of definition
  std::unordered_map<std::string, size_t> index_;
};

using MapsUnder = std::map<size_t, NamedMaps>;  // by the module

MapsUnder named_maps(const ModuleTree& tree) {
  MapsUnder result;
  for (size_t place = 0; place < tree.size(); ++place) {
    if (!tree[place].map) continue;
    auto paths = tree[place].users;
    for (int depth = 0; depth < kDepth; ++depth) {
      std::vector<std::pair<size_t, std::string>> longer;
      for (const auto& [anchor, name] : paths) {
        result[anchor].add(name, place);
        for (const auto& [user, prefix] : tree[anchor].users) {
          longer.emplace_back(user, prefix + "." + name);
        }
      }
      paths = std::move(longer);
    }
  }
  return result;
}

// A part of a convention by its index there, and the module that is taken for it.
using Chosen = std::vector<std::pair<size_t, size_t>>;

struct Reading {
  std::vector<std::pair<size_t, Recognised>> findings;  // by module; none where equations fail
  bool is_sure = false;                                 // every size is known
};

class Reader {
 public:
  explicit Reader(const ModuleTree& tree) : tree_(tree) {}

  Reading read(const Convention& convention, size_t anchor, const Chosen& chosen) const {
    std::vector<const Parts*> ways = {&convention.parts};
    for (const Parts& parts : convention.variants) ways.push_back(&parts);
    const std::vector<Sizes> known = sources(anchor, chosen);
    for (const Parts* parts : ways) {
      for (const Sizes& sizes : known) {
        const auto solved = solved_by(*parts, chosen, sizes);
        if (solved && is_closed(convention, *parts, chosen, *solved, sizes)) {
          return {findings(convention, *parts, chosen, *solved), true};
        }
      }
    }
    if (convention.must_close || contradicts(convention, chosen, known)) return {};
    for (const Parts* parts : ways) {
      if (const auto solved = solved_by(*parts, chosen, {})) {
        return {findings(convention, *parts, chosen, *solved), false};
      }
    }
    return {};
  }

 private:
  // What may be known, best first: what the modules state (the first one's word counts most) with
  // the config's where they are silent, each of the two alone; nothing at all if nobody speaks.
  std::vector<Sizes> sources(size_t anchor, const Chosen& chosen) const {
    Sizes modules = tree_[anchor].stated;
    const auto ask = [&](size_t place) {
      modules.insert(tree_[place].stated.begin(), tree_[place].stated.end());
    };
    // BERT's counts stand in what holds queries, not in what holds all.
    for (const auto& [part, place] : chosen) {
      for (const auto& [user, name] : tree_[place].users) ask(user);
    }
    if (const auto owner = owner_of(tree_, anchor)) ask(*owner);
    const Sizes& config = tree_[anchor].config;
    Sizes both = modules;
    both.insert(config.begin(), config.end());
    std::vector<Sizes> result;
    for (const Sizes& sizes : {both, modules, config}) {
      const bool is_new = std::find(result.begin(), result.end(), sizes) == result.end();
      if (!sizes.empty() && is_new) result.push_back(sizes);
    }
    if (result.empty()) result.emplace_back();
    return result;
  }

  std::optional<Sizes> solved_by(const Parts& parts, const Chosen& chosen,
                                 const Sizes& known) const {
    if (!tells_sides(parts, chosen)) return std::nullopt;
    std::vector<Equation> equations;
    for (const auto& [part, place] : chosen) {
      const auto& expressions = parts[part].shape;
      const Shape& shape = *tree_[place].map;
      if (expressions.size() != shape.size()) return std::nullopt;
      for (size_t i = 0; i < shape.size(); ++i) equations.emplace_back(&expressions[i], shape[i]);
    }
    return solve(std::move(equations), known);
  }

  // Whether inputs and outputs of the block can be told apart: by shape, or, where the one could be
  // the other, because outputs are defined last as everybody does.
  bool tells_sides(const Parts& parts, const Chosen& chosen) const {
    for (const auto& [out, out_place] : chosen) {
      if (!parts[out].is_output) continue;
      for (const auto& [in, in_place] : chosen) {
        const Shape& shape = *tree_[in_place].map;
        const Shape& out_shape = *tree_[out_place].map;
        const bool is_reverse =
            chosen.size() == 2 &&
            std::equal(shape.rbegin(), shape.rend(), out_shape.begin(), out_shape.end());
        const bool is_either = !parts[in].is_output && (shape == out_shape || is_reverse);
        if (is_either && in_place > out_place) return false;
      }
    }
    return true;
  }

  // Whether the layouts' sizes are found, and, if the convention asks for it, everything that its
  // shapes name is stated and not only solved for.
  static bool is_closed(const Convention& convention, const Parts& parts, const Chosen& chosen,
                        const Sizes& solved, const Sizes& known) {
    for (const auto& [part, place] : chosen) {
      if (convention.must_close) {
        for (const Expression& size : parts[part].shape) {
          for (const std::string& name : size.names()) {
            if (name[0] != '_' && !known.count(name)) return false;
          }
        }
      } else if (!layout_of(parts[part], solved)) {
        return false;
      }
    }
    return true;
  }

  // Whether somebody states sizes that the layouts need: then they contradict the shapes, or are
  // too few.
  static bool contradicts(const Convention& convention, const Chosen& chosen,
                          const std::vector<Sizes>& known) {
    for (const auto& [part, place] : chosen) {
      for (const SizedStep& step : convention.parts[part].layout) {
        for (const Expression& size : step.sizes) {
          for (const std::string& name : size.names()) {
            const bool is_stated = std::any_of(
                known.begin(), known.end(), [&](const Sizes& sizes) { return sizes.count(name); });
            if (name[0] != '_' && is_stated) return true;
          }
        }
      }
    }
    return false;
  }

  // The layout's steps in numbers; nullopt where a size is open.
  static std::optional<Layout> layout_of(const Part& part, const Sizes& sizes) {
    Layout layout;
    for (const SizedStep& step : part.layout) {
      std::vector<int64_t> values;
      for (const Expression& size : step.sizes) {
        for (const std::string& name : size.names()) {
          if (!sizes.count(name)) return std::nullopt;
        }
        values.push_back(size.at(sizes));
      }
      if (step.is_sections) {
        layout.push_back(LayoutStep::sections(values, step.dim));
      } else if (values.front() > 1) {
        layout.push_back(LayoutStep::heads(values.front(), step.dim));
      }
    }
    return layout;
  }

  static std::vector<std::pair<size_t, Recognised>> findings(const Convention& convention,
                                                             const Parts& parts,
                                                             const Chosen& chosen,
                                                             const Sizes& sizes) {
    std::vector<std::pair<size_t, Recognised>> result;
    for (const auto& [part, place] : chosen) {
      const auto layout = layout_of(parts[part], sizes);
      const char* open = layout ? "" : ", how many heads is not said: one matrix";
      result.push_back(
          {place, {parts[part].role, convention.what + open, layout.value_or(Layout())}});
    }
    return result;
  }

  const ModuleTree& tree_;
};

struct Spelling {
  const Convention* convention;
  std::vector<std::string> names;
};

std::vector<std::string> words(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

const std::vector<Spelling>& spellings_of(const std::string& first_name) {
  static const auto table = [] {
    std::unordered_map<std::string, std::vector<Spelling>> result;
    for (const Convention& convention : conventions()) {
      for (const std::string& spelling : convention.spellings) {
        std::vector<std::string> names = words(spelling);
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
bool is_torn_out(const ModuleTree& tree, const NamedMaps& maps,
                 const std::vector<std::string>& names) {
  const auto shape_of = [&](const std::vector<size_t>& places) -> const Shape& {
    return *tree[places.front()].map;
  };
  if (names.size() != 2 || names[0].find('.') != std::string::npos) return false;
  std::set<Shape> shapes;
  for (const auto& [part, places] : parts_named(maps, names)) shapes.insert(shape_of(*places));
  if (shapes.size() > 1) return false;
  return std::any_of(maps.entries().begin(), maps.entries().end(), [&](const auto& entry) {
    const auto& [name, places] = entry;
    return name.find('.') == std::string::npos &&
           std::find(names.begin(), names.end(), name) == names.end() &&
           shapes.count(shape_of(places));
  });
}

bool is_chain(const std::vector<Shape>& shapes) {
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (shapes[i].size() != 2 || (i > 0 && shapes[i - 1][0] != shapes[i][1])) return false;
  }
  return shapes.size() > 1;
}

// The maps of a class that is called an MLP: two, into and out of its neurons, or three.
std::map<size_t, Recognised> in_mlp_classes(const ModuleTree& tree, const MapsUnder& maps_under) {
  std::map<size_t, Recognised> found;
  const Reader reader(tree);
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
      if (reading.findings.empty()) reading = reader.read(convention, anchor, chosen);
    }
    for (auto& [place, finding] : reading.findings) found[place] = std::move(finding);
    if (reading.findings.empty() && is_chain(shapes)) {
      for (const size_t place : inside) found[place] = {"dense", "a chain of maps", {}};
    }
  }
  return found;
}

std::map<size_t, Recognised> by_conventions(const ModuleTree& tree, const MapsUnder& maps_under) {
  // How much a finding counts: is it sure, how many parts, has it a layout, how narrow is its
  // module.
  using Rank = std::tuple<bool, size_t, bool, size_t>;
  std::map<size_t, std::pair<Rank, Recognised>> best;
  const Reader reader(tree);
  for (const auto& [anchor, maps] : maps_under) {
    for (const Spelling& spelling : candidates(maps)) {
      if (is_torn_out(tree, maps, spelling.names)) continue;
      const auto parts = parts_named(maps, spelling.names);
      size_t versions = 0;
      for (const auto& [part, places] : parts) versions = std::max(versions, places->size());
      for (size_t version = 0; version < versions; ++version) {
        Chosen chosen;
        for (const auto& [part, places] : parts) {
          chosen.emplace_back(part, (*places)[std::min(version, places->size() - 1)]);
        }
        Reading reading = reader.read(*spelling.convention, anchor, chosen);
        for (auto& [place, finding] : reading.findings) {
          const Rank rank = {reading.is_sure, chosen.size(), !finding.layout.empty(), anchor};
          const auto [found, is_new] = best.try_emplace(place, rank, finding);
          if (!is_new && rank > found->second.first) found->second = {rank, finding};
        }
      }
    }
  }
  std::map<size_t, Recognised> found = in_mlp_classes(tree, maps_under);
  for (auto& [place, ranked] : best) found[place] = std::move(ranked.second);
  return found;
}

// --- experts in a list, and their routers -------------------------------------------------------

using Children = std::vector<std::vector<std::pair<std::string, size_t>>>;

Children children_of(const ModuleTree& tree) {
  Children result(tree.size());
  for (size_t place = 0; place < tree.size(); ++place) {
    for (const auto& [user, name] : tree[place].users) result[user].emplace_back(name, place);
  }
  return result;
}

// The module and all under it, each once.
std::vector<size_t> all_under(const Children& children, size_t place) {
  std::vector<size_t> stack = {place}, result;
  std::set<size_t> seen;
  while (!stack.empty()) {
    const size_t top = stack.back();
    stack.pop_back();
    if (!seen.insert(top).second) continue;
    result.push_back(top);
    for (const auto& [name, child] : children[top]) stack.push_back(child);
  }
  return result;
}

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
  const bool names_experts = std::any_of(entries.begin(), entries.end(), [](const auto& entry) {
    return is_found("experts", entry.first);
  });
  for (const auto& [name, places] : entries) {
    const Shape& shape = *tree[places.front()].map;
    if (shape.empty() || shape[0] < 2 || !is_all("routers", name)) continue;
    const bool is_stated = counts.count(shape[0]) && (!sizes.empty() || names_experts);
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

std::optional<size_t> owner_of(const ModuleTree& tree, size_t place) {
  while (!tree[place].users.empty()) {
    const size_t user = tree[place].users.front().first;
    if (user >= place) break;  // the root of a cycle
    if (!tree[user].is_container) return user;
    place = user;
  }
  return std::nullopt;
}

std::map<size_t, Recognised> recognise_maps(const ModuleTree& tree) {
  const MapsUnder maps_under = named_maps(tree);
  const Children children = children_of(tree);
  const std::map<size_t, Recognised> of_maps = by_conventions(tree, maps_under);
  std::map<size_t, Recognised> found = of_maps;
  for (const auto& [anchor, maps] : maps_under) {
    add_experts(tree, children, anchor, maps, of_maps, found);
  }
  return found;
}

std::map<std::string, RecognisedStack> recognise_stacks(const std::map<std::string, Shape>& tensors,
                                                        const std::set<int64_t>& counts,
                                                        const std::vector<Shape>& routers,
                                                        std::optional<int64_t> width) {
  for (const Convention& convention : expert_stacks()) {
    for (const std::string& spelling : convention.spellings) {
      const std::vector<std::string> names = words(spelling);
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
      for (const Shape& router : routers) {
        if (!width && router[0] == shapes[0][0]) widths.insert(router[1]);
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
      const bool plain = fits(false), transposed = fits(true);
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
