#include "routing/places.h"

namespace erlangen {

std::optional<size_t> owner_of(const ModuleTree& tree, size_t place) {
  while (!tree[place].users.empty()) {
    const size_t user = tree[place].users.front().first;
    if (user >= place) break;  // the root of a cycle
    if (!tree[user].is_container) return user;
    place = user;
  }
  return std::nullopt;
}

Children children_of(const ModuleTree& tree) {
  Children result(tree.size());
  for (size_t place = 0; place < tree.size(); ++place) {
    for (const auto& [user, name] : tree[place].users) result[user].emplace_back(name, place);
  }
  return result;
}

// The module and all under it, each once.
std::vector<size_t> all_under(const Children& children, size_t place) {
  std::vector<size_t> stack = {place}, result;
  std::set<size_t> seen;
  while (!stack.empty()) {
    const size_t top = stack.back();
    stack.pop_back();
    if (!seen.insert(top).second) continue;
    result.push_back(top);
    for (const auto& [name, child] : children[top]) stack.push_back(child);
  }
  return result;
}

}  // namespace erlangen
