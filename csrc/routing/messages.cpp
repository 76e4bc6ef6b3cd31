#include "routing/messages.h"

#include "routing/overrides.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/StringUtil.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <regex>
#include <sstream>
#include <tuple>

namespace erlangen {

namespace {

constexpr size_t kMostKinds = 12;  // that a warning lists
constexpr size_t kMostExamples = 3;

std::vector<std::string> parts_of(const std::string& name) {
  std::vector<std::string> parts;
  std::istringstream in(name);
  for (std::string part; std::getline(in, part, '.');) parts.push_back(part);
  return parts;
}

// Globs of names of one kind, each once: what differs between them is left open.
std::vector<std::string> globs_of(const std::vector<std::string>& names,
                                  const std::function<std::string(const std::string&)>& open) {
  std::vector<std::vector<std::string>> split;
  for (const std::string& name : names) split.push_back(parts_of(name));
  std::vector<bool> differs(split.front().size());
  for (const auto& parts : split) {
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i] != split.front()[i]) differs[i] = true;
    }
  }
  std::vector<std::string> globs;
  for (const auto& parts : split) {
    std::string glob;
    for (size_t i = 0; i < parts.size(); ++i) {
      glob += (i > 0 ? "." : "") + (differs[i] ? open(parts[i]) : parts[i]);
    }
    if (std::find(globs.begin(), globs.end(), glob) == globs.end()) globs.push_back(glob);
  }
  return globs;
}

// A number with as many digits. A star would take dots, too.
std::string as_digits(const std::string& number) {
  std::string glob;
  for (size_t i = 0; i < number.size(); ++i) glob += "[0-9]";
  return glob;
}

}  // namespace

std::string kind_of(const std::string& name) {
  static const std::regex number(R"((^|\.)\d+(?=\.))");
  return std::regex_replace(name, number, "$1*");
}

std::string glob_of(const std::vector<std::string>& names) {
  return globs_of(names, [](const std::string&) { return std::string("*"); }).front();
}

std::string assumed_message(const std::vector<AssumedParam>& params,
                            const std::vector<std::string>& names, int64_t matrices,
                            int64_t elements, bool all, const OverrideSyntax& syntax) {
  struct Kind {
    const AssumedParam* first;
    std::vector<std::string> names;
    std::string glob;
  };
  std::vector<Kind> kinds;
  using Key = std::tuple<std::string, std::vector<int64_t>, std::string, std::string>;
  std::map<Key, size_t> index;
  int64_t assumed = 0;
  for (const AssumedParam& param : params) {
    const auto [found, is_new] = index.try_emplace(
        Key(kind_of(param.name), param.shape, param.role, param.why), kinds.size());
    if (is_new) kinds.push_back({&param, {}, {}});
    kinds[found->second].names.push_back(param.name);
    assumed += c10::multiply_integers(param.shape);
  }
  for (Kind& kind : kinds) kind.glob = glob_of(kind.names);
  const double share =
      100.0 * static_cast<double>(assumed) / static_cast<double>(std::max<int64_t>(elements, 1));
  char percent[32];
  std::snprintf(percent, sizeof(percent), "%.1f%%", share);
  std::string text = "the role of " + std::to_string(params.size()) + " of " +
                     std::to_string(matrices) + " matrices (" + percent +
                     " of their elements) is only assumed, from the type of the layer:\n";
  const size_t shown = all ? kinds.size() : std::min(kinds.size(), kMostKinds);
  for (size_t i = 0; i < shown; ++i) {
    const Kind& kind = kinds[i];
    const size_t count = kind.names.size();
    text += "  " + (count > 1 ? std::to_string(count) + " × " : "") + kind.glob + " " +
            c10::str(c10::IntArrayRef(kind.first->shape)) + ": " + kind.first->role + ", as " +
            kind.first->why + "\n";
  }
  if (shown < kinds.size()) {
    text += "  ... and " + std::to_string(kinds.size() - shown) + " more kinds\n";
  }
  text += "Say what they are, by name or glob:\n  " + syntax.begin + "\n";
  std::stable_sort(kinds.begin(), kinds.end(),
                   [](const Kind& a, const Kind& b) { return a.names.size() > b.names.size(); });
  std::map<std::string, std::string> roles;
  for (const AssumedParam& param : params) roles.emplace(param.name, param.role);
  std::vector<std::pair<std::string, std::string>> entries;
  const auto write = [&](const std::string& name, const std::string& role) {
    const auto known = std::find_if(entries.begin(), entries.end(),
                                    [&](const auto& entry) { return entry.first == name; });
    if (known == entries.end()) entries.emplace_back(name, role);
  };
  bool is_whole = true;
  for (const Kind& kind : kinds) {
    if (!all && entries.size() >= kMostExamples) {
      is_whole = false;
      break;
    }
    const auto is_meant = [&](const std::string& glob) {
      return std::all_of(names.begin(), names.end(), [&](const std::string& name) {
        const auto found = roles.find(name);
        const bool is_same = found != roles.end() && found->second == kind.first->role;
        return is_same || !matches_glob(glob, name);
      });
    };
    std::vector<std::string> globs = {kind.glob};
    if (!is_meant(kind.glob)) globs = globs_of(kind.names, as_digits);
    if (std::all_of(globs.begin(), globs.end(), is_meant)) {
      for (const std::string& glob : globs) write(glob, kind.first->role);
      continue;
    }
    const size_t most = all ? kind.names.size() : std::min(kind.names.size(), kMostExamples);
    is_whole = is_whole && most == kind.names.size();
    for (size_t i = 0; i < most; ++i) write(kind.names[i], kind.first->role);
  }
  for (const auto& [name, role] : entries) text += "    " + syntax.entry(name, role) + ",\n";
  if (!is_whole) text += "    ...\n";
  text +=
      "  " + syntax.end +
      "\nwith attention, mlp_in, mlp_out, expert_in, expert_out, router, embedding, lm_head or "
      "dense for a matrix [out, in] (with its \"layout\", such as " +
      syntax.layout +
      ", after a flatten of a convolution's, if it is several matrices or stored another way), and "
      "other for everything else.";
  return text;
}

}  // namespace erlangen
