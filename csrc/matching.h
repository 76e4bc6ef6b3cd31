// Conventions held against a model: which parts of it have their names, and obey their equations.
// Works on a plain description of the model's modules, which C++ and Python make of theirs.
#pragma once

#include "conventions.h"

#include <erlangen/options.h>

#include <cstdint>
#include <map>
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

// What is recognised: a role, its layout (of a map [out, in], however it is stored), and why.
struct Recognised {
  std::string role, why;
  Layout layout;
};

// What conventions say of linear maps, by the index of the map's module: the word of the one that
// covers most parts, in the narrowest module of those. Routers by name, with as many rows as there
// are experts beside them; maps of experts in a list with as many entries as that.
std::map<size_t, Recognised> recognise_maps(const ModuleTree& tree);

// What a stack of experts' matrices is.
struct RecognisedStack {
  std::string role;
  bool is_transposed = false;  // stored as [E, in, out]
  bool has_halves = false;     // gate and up in one
};

// Experts' matrices in stacks [E, out, in] or [E, in, out] among a module's tensors, as their
// equations tell, by name. `counts`: numbers of experts; `routers`: [rows, width] of maps nearby;
// `width`: that of the model, if it is stated.
std::map<std::string, RecognisedStack> recognise_stacks(const std::map<std::string, Shape>& tensors,
                                                        const std::set<int64_t>& counts,
                                                        const std::vector<Shape>& routers,
                                                        std::optional<int64_t> width);

}  // namespace erlangen
