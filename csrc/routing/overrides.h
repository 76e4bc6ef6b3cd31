// What the caller says about parameters.
#pragma once

#include <erlangen/routing.h>

#include <set>
#include <string>
#include <vector>

namespace erlangen {

// Whether a glob fits all of a name, as Python's fnmatch does: '*' stands for any characters, '?'
// for one, "[abc]", "[a-c]" and "[!abc]" for one of these or of all others.
bool matches_glob(const std::string& pattern, const std::string& name);

// The caller's options by exact name, by glob and by role, and which of them have been used.
class Sayings {
 public:
  // Raises c10::ValueError for a role that does not exist.
  explicit Sayings(const Overrides& overrides);

  // What is said of a parameter of these names: by name before by glob, later globs before earlier
  // ones; and of a role.
  EquivariantOptions of_names(const std::vector<std::string>& names);
  EquivariantOptions of_role(const std::string& role);

  // Raises c10::ValueError that lists what says something of none of the parameters of these names,
  // and of no role.
  void check_used(const std::vector<std::string>& trainable, const std::vector<std::string>& frozen,
                  const std::set<std::string>& roles) const;

 private:
  const Overrides& overrides_;
  std::vector<bool> used_;
};

}  // namespace erlangen
