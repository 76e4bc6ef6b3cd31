// A plain description of a model's modules, which C++ and Python make of theirs.
#pragma once

#include "routing/equations.h"

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace erlangen {

using Shape = std::vector<int64_t>;

// A module, and where in the model it stands.
struct ModulePlace {
  std::string kind;           // the name of its class, as its author wrote it
  int64_t type = 0;           // one for each class
  bool is_list = false;       // torch's ModuleList or ModuleDict
  bool is_container = false;  // of torch: one of these, or Sequential
  // The modules that hold it, by index, and its name there; the first is where the model defines
  // it, so that its index is less.
  std::vector<std::pair<size_t, std::string>> users;
  std::optional<Shape> map;   // of a linear map: [out, in], or empty if it has not one matrix
  Sizes stated;               // sizes that the module itself states
  Sizes config;               // and that its config does
  std::set<int64_t> experts;  // numbers of experts stated by it, around it or in the config
  std::optional<int64_t> own_experts;  // by itself
  std::set<int64_t> stacks;            // leading dimensions of its own tensors of three dimensions
};

// The modules in the order of their definition, a shared one once.
using ModuleTree = std::vector<ModulePlace>;

// The nearest module around it that is no container.
std::optional<size_t> owner_of(const ModuleTree& tree, size_t place);

// What each module holds, by name, in the order of definition.
using Children = std::vector<std::vector<std::pair<std::string, size_t>>>;
Children children_of(const ModuleTree& tree);

// The module and all under it, each once.
std::vector<size_t> all_under(const Children& children, size_t place);

}  // namespace erlangen
