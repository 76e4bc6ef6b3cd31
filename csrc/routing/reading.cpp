#include "routing/reading.h"

#include <algorithm>
#include <optional>

namespace erlangen {

namespace {

class Reader {
 public:
  Reader(const ModuleTree& tree, const Children& children) : tree_(tree), children_(children) {}

  Reading read(const Convention& convention, size_t anchor, const Chosen& chosen) const {
    if (!stands_beside(convention.beside, anchor)) return {};
    std::vector<const Parts*> ways = {&convention.parts};
    for (const Parts& parts : convention.variants) ways.push_back(&parts);
    std::erase_if(ways, [&](const Parts* parts) { return !tells_sides(*parts, chosen); });
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
  bool stands_beside(const std::string& name, size_t anchor) const {
    const auto& held = children_[anchor];
    return name.empty() || std::any_of(held.begin(), held.end(),
                                       [&](const auto& child) { return child.first == name; });
  }

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
      const char* open = layout ? "" : kOpenHeads;
      result.push_back(
          {place, {parts[part].role, convention.what + open, layout.value_or(Layout())}});
    }
    return result;
  }

  const ModuleTree& tree_;
  const Children& children_;
};

}  // namespace

Reading read(const ModuleTree& tree, const Children& children, const Convention& convention,
             size_t anchor, const Chosen& chosen) {
  return Reader(tree, children).read(convention, anchor, chosen);
}

}  // namespace erlangen
