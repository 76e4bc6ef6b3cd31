// What bad option values get, wherever a value can enter: an error that names the group, the option
// and the value, before anything has changed.

#include <limits>

#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::expect_raises;
using testing::expect_same;
using testing::group_of;
using testing::parameter;
using testing::picture;
using testing::run;
using testing::set_grads;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

struct Case {
  std::string name;
  EquivariantOptions options;
  std::vector<std::string> words;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

using Triples = std::vector<std::array<double, 3>>;

EquivariantOptions with() { return EquivariantOptions().rule("spectral"); }

const std::vector<Case> kCases = {
    {"rule", with().rule("polar"), {"rule", "polar", "spectral", "adamw"}},
    {"no_rule", EquivariantOptions().rule(""), {"rule", "spectral", "adamw"}},
    {"order", with().order("polar"), {"order", "polar_then_row"}},
    {"decay", with().decay("coupled"), {"decay", "coupled", "cautious"}},
    {"support", with().support("rows"), {"support", "rows", "gradient"}},
    {"momentum_order", with().momentum_order("last"), {"momentum_order", "last", "polar_first"}},
    {"adjust_lr_fn", with().adjust_lr_fn("muon"), {"adjust_lr_fn", "muon", "original"}},
    {"ns_method", with().ns_method("fast"), {"ns_method", "fast", "gram"}},
    {"ns_dtype", with().ns_dtype("float8"), {"ns_dtype", "float8", "bfloat16"}},
    {"state_dtype", with().state_dtype("float16"), {"state_dtype", "float16", "bfloat16"}},
    {"lr_negative", with().lr(-1e-3), {"lr", "-0.001", ">= 0"}},
    {"lr_nan", with().lr(kNan), {"lr", "nan", "finite"}},
    {"lr_inf", with().lr(kInf), {"lr", "inf", "finite"}},
    {"update_scale", with().update_scale(-1.0), {"update_scale", "-1", ">= 0"}},
    {"weight_decay", with().weight_decay(-0.1), {"weight_decay", "-0.1", ">= 0"}},
    {"momentum_one", with().momentum(1.0), {"momentum", "1", "[0, 1)"}},
    {"momentum_nan", with().momentum(kNan), {"momentum", "nan", "[0, 1)"}},
    {"beta1", with().betas({1.0, 0.9}), {"betas[0]", "1", "[0, 1)"}},
    {"beta2", with().betas({0.9, -0.5}), {"betas[1]", "-0.5", "[0, 1)"}},
    {"eps", with().eps(-1e-8), {"eps", "-1e-08", ">= 0"}},
    {"ns_eps", with().ns_eps(kNan), {"ns_eps", "nan", "finite"}},
    {"alpha", with().alpha(kInf), {"alpha", "inf", "finite"}},
    {"ns_steps_zero", with().ns_steps(0), {"ns_steps", "0", "1 to 99"}},
    {"ns_steps_many", with().ns_steps(100), {"ns_steps", "100", "1 to 99"}},
    {"ns_set", with().ns_coefficients("quintic"), {"ns_coefficients", "quintic", "jordan"}},
    {"ns_nan", with().ns_coefficients(Triples{{1.0, kNan, 0.0}}), {"ns_coefficients", "nan"}},
    {"deepseek_steps", with().ns_coefficients("deepseek_v4").ns_steps(5), {"ns_steps", "5", "10"}},
    {"center_heads", with().center(true).layout({LayoutStep::heads(2, -2)}), {"center", "heads"}},
    {"center_sections",
     with().center(true).layout({LayoutStep::sections({4, 4}, -2)}),
     {"center", "sections"}},
    {"center_pairs",
     with().center(true).layout({LayoutStep::pairs("concatenated", -2)}),
     {"center", "pairs"}},
    {"center_column_norm", with().rule("column_norm").center(true), {"center", "column_norm"}},
    {"center_adamw", with().rule("adamw").center(true), {"center", "adamw"}},
    {"center_cautious", with().center(true).decay("cautious"), {"cautious", "decoupled"}},
    {"alpha_row_norm", with().rule("row_norm").alpha(0.5), {"alpha", "0.5", "row_norm"}},
    {"alpha_column_norm", with().rule("column_norm").alpha(1.0), {"alpha", "column_norm"}},
    {"alpha_adamw", with().rule("adamw").alpha(1.0), {"alpha", "adamw"}},
    {"alpha_polar_then_row",
     with().rule("hybrid").order("polar_then_row").alpha(1.0),
     {"alpha", "polar_then_row"}},
    {"layout_verb", with().layout({{"rows", {2}, "", -2}}), {"layout", "rows", "sections"}},
    {"layout_dim", with().layout({LayoutStep::heads(2, 0)}), {"layout", "0", "-2"}},
    {"heads", with().layout({LayoutStep::heads(3, -2)}), {"heads", "3", "8", "parameter 0"}},
    {"sections",
     with().layout({LayoutStep::sections({3, 4}, -2)}),
     {"sections", "[3, 4]", "7", "8", "parameter 0"}},
    {"pairs_order", with().layout({LayoutStep::pairs("mixed", -2)}), {"mixed", "interleaved"}},
    {"flatten_second",
     with().layout({LayoutStep::transpose(), LayoutStep::flatten()}),
     {"flatten", "first"}},
};

std::vector<std::string> in_group(const Case& c, int group) {
  auto words = c.words;
  words.push_back("param_groups[" + std::to_string(group) + "]");
  return words;
}

// An optimizer in the middle of a run, with gradients for the next step.
std::unique_ptr<Equivariant> live() {
  auto optimizer = std::make_unique<Equivariant>(
      std::vector{group_of({parameter({8, 6})}, with()),
                  group_of({parameter({8, 6})}, EquivariantOptions().rule("adamw"))});
  run(*optimizer, 2, 1);
  set_grads(testing::params_of(*optimizer), 7);
  return optimizer;
}

class BadOption : public ::testing::TestWithParam<Case> {};

TEST_P(BadOption, OfConstructor) {
  // Without a rule these are bare parameters.
  const bool bare = GetParam().options.rule().empty();
  expect_raises<c10::ValueError>(
      bare ? std::vector<std::string>{"bare parameters", "param_groups"} : GetParam().words, [] {
        Equivariant(std::vector<torch::Tensor>{parameter({8, 6})}, GetParam().options);
      });
}

TEST_P(BadOption, OfGroup) {
  expect_raises<c10::ValueError>(in_group(GetParam(), 1), [] {
    Equivariant(
        {group_of({parameter({8, 6})}, with()), group_of({parameter({8, 6})}, GetParam().options)});
  });
}

TEST_P(BadOption, OfAddedGroup) {
  const auto optimizer = live();
  const auto before = picture(*optimizer);
  expect_raises<c10::ValueError>(in_group(GetParam(), 2), [&] {
    optimizer->add_param_group(group_of({parameter({8, 6})}, GetParam().options));
  });
  expect_same(picture(*optimizer), before);
}

TEST_P(BadOption, ChangedLater) {
  const auto optimizer = live();
  auto& options = static_cast<EquivariantOptions&>(optimizer->param_groups()[0].options());
  const EquivariantOptions good = options;
  options = GetParam().options;
  const auto before = picture(*optimizer);
  expect_raises<c10::ValueError>(in_group(GetParam(), 0), [&] { optimizer->step(); });
  expect_same(picture(*optimizer), before);
  options = good;  // and nothing stands in the way of going on
  optimizer->step();
}

INSTANTIATE_TEST_SUITE_P(Values, BadOption, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

TEST(BadOption, UnknownPreset) {
  expect_raises<c10::ValueError>({"Adam", "Muon", "RowNorm"}, [] { preset_options("Adam"); });
}

}  // namespace
}  // namespace erlangen
