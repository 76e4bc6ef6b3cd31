// One convention held against the maps that have its names.
#pragma once

#include "routing/conventions.h"
#include "routing/places.h"

#include <erlangen/options.h>

#include <string>
#include <utility>
#include <vector>

namespace erlangen {

// What is recognised: a role, its layout (of a map [out, in], however it is stored), and why.
struct Recognised {
  std::string role, why;
  Layout layout;
};

// What a reason ends with where head counts are open.
inline constexpr const char* kOpenHeads = ", how many heads is not said: one matrix";

// A part of a convention by its index there, and the map that is taken for it.
using Chosen = std::vector<std::pair<size_t, size_t>>;

struct Reading {
  std::vector<std::pair<size_t, Recognised>> findings;  // by map; none if equations fail
  bool is_sure = false;                                 // every size is known
};

// What the convention says of these maps, all under the module `anchor`.
Reading read(const ModuleTree& tree, const Children& children, const Convention& convention,
             size_t anchor, const Chosen& chosen);

}  // namespace erlangen
