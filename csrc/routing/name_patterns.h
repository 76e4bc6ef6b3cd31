// Names that count together with shapes: of classes, tensors, tables and heads.
#pragma once

#include <map>
#include <string>

namespace erlangen {

// Regular expressions (ECMAScript, which Python reads too) about the names of tensors, modules and
// classes, each under what it finds.
const std::map<std::string, std::string>& name_patterns();

// Whether the pattern under `what` is found in `name`, or is all of it.
bool is_found(const std::string& what, const std::string& name);
bool is_all(const std::string& what, const std::string& name);

}  // namespace erlangen
