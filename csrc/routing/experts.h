// Experts and their routers.
#pragma once

#include "routing/named_maps.h"
#include "routing/reading.h"

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace erlangen {

// Experts as a list of modules: routers by name, with as many rows as there are experts beside
// them, and the maps of experts in a list with as many entries as the router has rows or as is
// stated. `of_maps`: what conventions say of the maps, as MLPs.
std::map<size_t, Recognised> experts_apart(const ModuleTree& tree, const Children& children,
                                           const MapsUnder& maps_under,
                                           const std::map<size_t, Recognised>& of_maps);

// What a stack of experts' matrices is.
struct RecognisedStack {
  std::string role;
  bool is_transposed = false;  // stored as [E, in, out]
  bool has_halves = false;     // gate and up in one
};

// Experts' matrices in stacks [E, out, in] or [E, in, out] among a module's tensors, as their
// equations tell, by name. `counts`: numbers of experts; `maps`: [out, in] of the maps nearby, a
// router's among them; `width`: that of the model, if it is stated.
std::map<std::string, RecognisedStack> recognise_stacks(const std::map<std::string, Shape>& tensors,
                                                        const std::set<int64_t>& counts,
                                                        const std::vector<Shape>& maps,
                                                        std::optional<int64_t> width);

}  // namespace erlangen
