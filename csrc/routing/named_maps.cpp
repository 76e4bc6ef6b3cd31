#include "routing/named_maps.h"

namespace erlangen {

namespace {

constexpr int kDepth = 3;  // of the names of a part, in components

}  // namespace

MapsUnder named_maps(const ModuleTree& tree) {
  MapsUnder result;
  for (size_t place = 0; place < tree.size(); ++place) {
    if (!tree[place].map) continue;
    auto paths = tree[place].users;
    for (int depth = 0; depth < kDepth; ++depth) {
      std::vector<std::pair<size_t, std::string>> longer;
      for (const auto& [anchor, name] : paths) {
        result[anchor].add(name, place);
        for (const auto& [user, prefix] : tree[anchor].users) {
          longer.emplace_back(user, prefix + "." + name);
        }
      }
      paths = std::move(longer);
    }
  }
  return result;
}

}  // namespace erlangen
