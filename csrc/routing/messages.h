// What routing tells the user: tensors of one kind on one line, and the override to write.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace erlangen {

// The name with its numbers left open: one for all layers.
std::string kind_of(const std::string& name);

// What matches all these names of one kind: numbers stay where they are the same in each.
std::string glob_of(const std::vector<std::string>& names);

// A parameter whose role is only assumed.
struct AssumedParam {
  std::string name;
  std::vector<int64_t> shape;
  std::string role, why;
};

// How the caller's language writes overrides: what stands around them, one of a name or glob with a
// role, and a layout as an example.
struct OverrideSyntax {
  std::string begin, end;
  std::function<std::string(const std::string& name, const std::string& role)> entry;
  std::string layout;
};

// Says what is only assumed, one line a kind, and which overrides make it sure: globs, where these
// match nothing else among the `names` that are trained. `matrices`, `elements`: how many the model
// has, and of how many numbers in all. With `all` every kind is listed, and an override for each,
// else the first few.
std::string assumed_message(const std::vector<AssumedParam>& params,
                            const std::vector<std::string>& names, int64_t matrices,
                            int64_t elements, bool all, const OverrideSyntax& syntax);

}  // namespace erlangen
