// The linear maps under each module by their names there.
#pragma once

#include "routing/places.h"

#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace erlangen {

// The linear maps under a module by their names there; several under one name are copies.
class NamedMaps {
 public:
  using Entry = std::pair<std::string, std::vector<size_t>>;

  void add(const std::string& name, size_t place) {
    const auto [found, is_new] = index_.try_emplace(name, entries_.size());
    if (is_new) entries_.push_back({name, {}});
    std::vector<size_t>& places = entries_[found->second].second;
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
  }

  const std::vector<size_t>* find(const std::string& name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &entries_[found->second].second;
  }

  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;  // in the order of definition
  std::unordered_map<std::string, size_t> index_;
};

using MapsUnder = std::map<size_t, NamedMaps>;  // by the module
MapsUnder named_maps(const ModuleTree& tree);

}  // namespace erlangen
