// Conventions held against a model: which parts of it have their names, and obey their equations.
#pragma once

#include "routing/reading.h"

#include <map>

namespace erlangen {

// What conventions say of linear maps, by the index of the map's module: the word of the one that
// covers most parts, in the narrowest module of those. Routers by name, with as many rows as there
// are experts beside them; maps of experts in a list with as many entries as that.
std::map<size_t, Recognised> recognise_maps(const ModuleTree& tree);

}  // namespace erlangen
