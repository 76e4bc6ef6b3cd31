#include "routing/overrides.h"

#include "check.h"
#include "ivalue.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace erlangen {

namespace {

// Whether the bracket that begins at `at` takes `c`, and where it ends; at `at` if it never closes,
// so that it stands for itself.
std::pair<bool, size_t> in_bracket(const std::string& pattern, size_t at, char c) {
  size_t i = at + 1;
  const bool negated = i < pattern.size() && pattern[i] == '!';
  if (negated) ++i;
  // A bracket that closes at once would be empty: it is one of the characters.
  const size_t end = pattern.find(']', i + 1);
  if (end == std::string::npos) return {c == '[', at + 1};
  bool found = false;
  while (i < end) {
    if (i + 2 < end && pattern[i + 1] == '-') {
      found = found || (pattern[i] <= c && c <= pattern[i + 2]);
      i += 3;
    } else {
      found = found || pattern[i] == c;
      ++i;
    }
  }
  return {found != negated, end + 1};
}

}  // namespace

bool matches_glob(const std::string& pattern, const std::string& name) {
  // After a mismatch only the last star need take one character more.
  size_t p = 0, n = 0, star = std::string::npos, taken = 0;
  while (n < name.size()) {
    std::pair<bool, size_t> next = {false, p};
    if (p < pattern.size()) {
      if (pattern[p] == '*') {
        star = p++;
        taken = n;
        continue;
      }
      next = pattern[p] == '[' ? in_bracket(pattern, p, name[n])
                               : std::pair(pattern[p] == '?' || pattern[p] == name[n], p + 1);
    }
    if (next.first) {
      p = next.second;
      ++n;
    } else if (star != std::string::npos) {
      p = star + 1;
      n = ++taken;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string::npos;
}

Sayings::Sayings(const Overrides& overrides) : overrides_(overrides), used_(overrides.size()) {
  for (const auto& [key, options] : overrides) {
    if (!options.role().empty()) {
      check_one_of("override " + repr(key), "role", options.role(), role_names());
    }
  }
}

EquivariantOptions Sayings::of_names(const std::vector<std::string>& names) {
  EquivariantOptions exact, globs;
  for (size_t i = overrides_.size(); i-- > 0;) {
    const auto& [pattern, options] = overrides_[i];
    const auto fits = [&](const std::string& name) { return matches_glob(pattern, name); };
    if (std::find(names.begin(), names.end(), pattern) != names.end()) {
      exact.fill_from(options);
    } else if (std::any_of(names.begin(), names.end(), fits)) {
      globs.fill_from(options);
    } else {
      continue;
    }
    used_[i] = true;
  }
  exact.fill_from(globs);
  return exact;
}

EquivariantOptions Sayings::of_role(const std::string& role) {
  EquivariantOptions result;
  for (size_t i = overrides_.size(); i-- > 0;) {
    if (overrides_[i].first != role) continue;
    result.fill_from(overrides_[i].second);
    used_[i] = true;
  }
  return result;
}

void Sayings::check_used(const std::vector<std::string>& trainable,
                         const std::vector<std::string>& frozen,
                         const std::set<std::string>& roles) const {
  std::string lines;
  for (size_t i = 0; i < overrides_.size(); ++i) {
    if (used_[i]) continue;
    const std::string& key = overrides_[i].first;
    const auto is_it = [&](const std::string& name) { return matches_glob(key, name); };
    const auto is_inside = [&](const std::string& name) { return name.starts_with(key + "."); };
    const auto inside = std::find_if(trainable.begin(), trainable.end(), is_inside);
    lines += "\n  " + repr(key);
    if (std::any_of(frozen.begin(), frozen.end(), is_it)) {
      lines += " (requires no gradient)";
    } else if (inside != trainable.end()) {
      lines += " (did you mean " + repr(*inside) + "?)";
    }
  }
  std::vector<std::string> here;
  for (const std::string& role : role_names()) {
    if (roles.count(role)) here.push_back(role);
  }
  TORCH_CHECK_VALUE(
      lines.empty(),
      "these overrides match no trainable parameter's name and no role of this module:", lines,
      "\nroles of this module: ", join(here));
}

}  // namespace erlangen
