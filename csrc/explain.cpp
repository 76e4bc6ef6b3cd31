#include "explain.h"

#include "check.h"
#include "layout.h"
#include "routing/messages.h"
#include "rules.h"

#include <c10/util/strides.h>

#include <algorithm>
#include <array>
#include <iomanip>
#include <map>
#include <sstream>

namespace erlangen {

namespace {

using Row = std::array<std::string, 7>;

std::string product(const std::vector<int64_t>& sizes) {
  std::string result;
  for (int64_t size : sizes) result += (result.empty() ? "" : "×") + std::to_string(size);
  return result.empty() ? "scalar" : result;
}

std::string number(double value) {
  std::ostringstream out;
  out << std::setprecision(4) << value;
  return out.str();
}

// The rule, and the options that change what it does.
std::string rule_text(const EquivariantOptions& o) {
  std::string text = o.rule();
  if (o.rule() == "hybrid") text += " " + o.order();
  if (o.center()) text += ", centered";
  if (o.alpha() != 0.0) text += ", alpha " + number(o.alpha());
  if (o.momentum_order() == "polar_first" && o.rule() != "adamw") text += ", polar first";
  if (o.support() == "gradient") text += ", rows with gradient";
  if (o.decay() == "cautious") text += ", cautious decay (breaks rotations and shifts)";
  return text;
}

Row row_of(const EquivariantOptions& options, const at::Tensor& param, const std::string& name,
           const std::string& why) {
  std::string matrices = "-", scale = "-";
  if (param.numel() > 0 && options.rule() == "adamw") {
    scale = number(options.update_scale());
  } else if (param.numel() > 0) {
    matrices.clear();
    scale.clear();
    const auto views =
        matrix_views(options.layout(), param.sizes(), c10::contiguous_strides(param.sizes()), name);
    for (const MatrixView& view : views) {
      const double by_shape = shape_scale(RuleOptions::from(options), view.m(), view.n());
      const std::string separator = matrices.empty() ? "" : " + ";
      const std::string count = view.count() == 1 ? "" : std::to_string(view.count()) + " of ";
      matrices += separator + count + product({view.m(), view.n()});
      scale += separator + number(options.update_scale() * by_shape);
    }
  }
  return {name,
          product(param.sizes().vec()),
          options.role().empty() ? "-" : options.role(),
          rule_text(options),
          matrices,
          scale,
          why};
}

// One row for all parameters that differ only in the numbers of their names.
std::vector<Row> collapsed(const std::vector<Row>& rows) {
  std::vector<Row> result;
  std::vector<std::vector<std::string>> names;
  std::map<Row, size_t> places;  // in the result
  for (const Row& row : rows) {
    Row kind = row;
    kind[0] = kind_of(row[0]);
    const auto [place, is_new] = places.try_emplace(kind, result.size());
    if (is_new) {
      result.push_back(row);
      names.emplace_back();
    }
    names[place->second].push_back(row[0]);
  }
  for (size_t i = 0; i < result.size(); ++i) {
    const size_t count = names[i].size();
    if (count > 1) result[i][0] = std::to_string(count) + " × " + glob_of(names[i]);
  }
  return result;
}

// Characters, not bytes: "×" has two of these.
size_t width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](unsigned char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string explain(const std::vector<ExplainGroup>& groups, bool full) {
  std::vector<Row> rows;
  for (size_t g = 0; g < groups.size(); ++g) {
    const EquivariantOptions& options = groups[g].options;
    check_options(options, describe_group(g, options));
    const auto entry = [&](const EquivariantOptions::Strings& list, size_t p) {
      return list.size() == groups[g].params.size() ? list[p] : std::string();
    };
    for (size_t p = 0; p < groups[g].params.size(); ++p) {
      std::string name = entry(options.param_names(), p);
      if (name.empty()) name = "group " + std::to_string(g) + " [" + std::to_string(p) + "]";
      const std::string grade = entry(options.evidence(), p), phrase = entry(options.why(), p);
      const std::string why = grade + (grade.empty() || phrase.empty() ? "" : ": ") + phrase;
      rows.push_back(row_of(options, groups[g].params[p], name, why));
    }
  }
  if (!full) rows = collapsed(rows);
  Row head = {"parameter", "shape", "role", "rule", "logical matrices", "update scale", "why"};
  // Groups that nobody routed have no reasons to show.
  if (std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.back().empty(); })) {
    head.back().clear();
  }
  rows.insert(rows.begin(), std::move(head));
  std::array<size_t, std::tuple_size<Row>::value> widths{};
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
  }
  std::string result;
  for (const Row& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i] + std::string(widths[i] - width(row[i]) + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    result += line + "\n";
  }
  return result;
}

}  // namespace erlangen
