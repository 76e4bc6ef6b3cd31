// What is found about the parameters of a torch::nn model, and how far it can be relied on.
#pragma once

#include "routing/module_tree.h"

#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace erlangen {

enum class Grade { declared, recognised, assumed };  // best first

const char* name_of(Grade grade);

// A role with its layout, its grade, and the reason in a phrase.
struct Finding {
  std::string role;
  Grade grade = Grade::assumed;
  std::string why;
  Layout layout = {};
  std::optional<bool> center = std::nullopt;  // where it differs from the role's own
  Layout storage = {};                        // what another role would have of the layout, too

  // Whether both make the same of the parameter, for whatever reason.
  bool says_as(const Finding& other) const {
    return role == other.role && layout == other.layout && center == other.center;
  }
};

// Every tensor that the module holds itself, with what its type and its name say, whatever the
// module is for.
std::vector<std::pair<torch::Tensor, Finding>> judge(const Model& model, size_t place);

// What names and shapes say of tensors that a module holds itself and that are no linear maps.
std::unordered_map<const void*, Finding> recognise_tensors(const Model& model);

// Whether so many rows are a vocabulary's of this size, padded to a multiple of 8 or not.
bool is_padded(int64_t rows, int64_t size);

// One decision a parameter, by its TensorImpl: the strongest evidence, shared tensors, heads.
std::unordered_map<const void*, Finding> decide(const Model& model);

}  // namespace erlangen
