// Conventions by which people name the parts of a block, as data: the one copy, for C++ and Python.
//
// A convention lists the parts of a block, and the spellings under which they are found: names
// relative to one module, dots included. It holds where the names are there *and* the shapes obey
// its equations, with the sizes that the modules or a config state and one unknown for each name
// that nobody states. A layout whose sizes stay open is left out: the whole matrix.
//
// To add a convention, add an entry; the shapes are those of [out, in] maps, whichever way they are
// stored, or of a tensor as it is.
#pragma once

#include "routing/equations.h"

#include <cstdint>
#include <string>
#include <vector>

namespace erlangen {

// A step of a layout whose sizes are expressions: one count for equal parts ("heads"), or the sizes
// of unequal ones ("sections").
struct SizedStep {
  std::vector<Expression> sizes;
  int64_t dim = -2;
  bool is_sections = false;
};

// One part of a block: its role, its shape by equation, its layout by sizes, and whether its
// columns (not its rows) are the block's inner features. Sizes that begin with "_" nobody states.
struct Part {
  std::string role;
  std::vector<Expression> shape;
  std::vector<SizedStep> layout = {};
  bool is_output = false;
};

using Parts = std::vector<Part>;

struct Convention {
  std::string what;
  Parts parts;
  std::vector<std::string> spellings;  // of the parts in their order; "-" where one is elsewhere
  std::vector<Parts> variants = {};    // other equations, tried where those before fail
  bool must_close = false;   // sizes of the shapes must be stated, not only those of layouts
  std::string beside = "";   // the name of a module that must stand beside the parts
  bool names_order = false;  // of stacks: the names say in which order the dimensions are stored
};

// What maps are that follow each other: the last one may be a head all the same.
inline constexpr const char* kChain = "a chain of maps";

// The names in a spelling.
std::vector<std::string> names_in(const std::string& spelling);

// What linear maps are called.
const std::vector<Convention>& conventions();

// The maps of a class that is called an MLP, so many, whatever their names: by order and shape.
const std::vector<Convention>& mlps_by_order(size_t maps);

// Experts' matrices in stacks.
const std::vector<Convention>& expert_stacks();

}  // namespace erlangen
