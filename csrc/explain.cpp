#include "explain.h"

#include "check.h"
#include "layout.h"
#include "rules.h"

#include <c10/util/strides.h>

#include <algorithm>
#include <array>
#include <iomanip>
#include <sstream>

namespace erlangen {

namespace {

using Row = std::array<std::string, 6>;

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

Row row_of(const EquivariantOptions& options, const at::Tensor& param, const std::string& name) {
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
          scale};
}

// Characters, not bytes: "×" has two of these.
size_t width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](unsigned char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string explain(const std::vector<ExplainGroup>& groups) {
  std::vector<Row> rows = {
      {"parameter", "shape", "role", "rule", "logical matrices", "update scale"}};
  for (size_t g = 0; g < groups.size(); ++g) {
    const EquivariantOptions& options = groups[g].options;
    check_options(options, describe_group(g, options));
    for (size_t p = 0; p < groups[g].params.size(); ++p) {
      const auto& names = options.param_names();
      const std::string name = p < names.size()
                                   ? names[p]
                                   : "group " + std::to_string(g) + " [" + std::to_string(p) + "]";
      rows.push_back(row_of(options, groups[g].params[p], name));
    }
  }
  std::array<size_t, 6> widths{};
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
