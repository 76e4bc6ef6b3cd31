// torch::save and torch::load of optimizers: runs go on with equal bits, and what does not fit
// changes nothing.

#include <cmath>
#include <functional>
#include <limits>
#include <sstream>

#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::copies;
using testing::expect_raises;
using testing::expect_same;
using testing::group_of;
using testing::parameter;
using testing::params_of;
using testing::picture;
using testing::run;

struct Case {
  const char* name;
  EquivariantOptions options;
  at::ScalarType dtype = at::kFloat;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

using Triples = std::vector<std::array<double, 3>>;

EquivariantOptions rule(const char* name) { return EquivariantOptions().rule(name); }

const std::vector<Case> kCases = {
    {"spectral", rule("spectral")},
    {"right_spectral", rule("right_spectral").alpha(1.0)},
    {"left_spectral", rule("left_spectral").center(true)},
    {"row_norm", rule("row_norm").support("gradient")},
    {"column_norm", rule("column_norm").nesterov(true)},
    {"hybrid", rule("hybrid").momentum_order("polar_first")},
    {"layout",
     rule("spectral").layout({LayoutStep::sections({4, 4}, -2), LayoutStep::heads(2, -2)})},
    {"coefficients", rule("spectral").ns_coefficients(Triples{{1.5, -0.5, 0.0}}).ns_steps(6)},
    {"adamw", rule("adamw").betas({0.5, 0.25})},
    {"double", rule("spectral"), at::kDouble},
    {"bfloat16", rule("row_norm").stochastic_rounding(true).seed(-3), at::kBFloat16},
    {"bfloat16 adamw", rule("adamw").stochastic_rounding(true), at::kBFloat16},
    {"bfloat16 state", rule("hybrid").state_dtype("bfloat16")},
};

std::vector<torch::Tensor> leaves(const std::vector<torch::Tensor>& values) {
  auto result = copies(values);
  for (auto& tensor : result) tensor.requires_grad_();
  return result;
}

std::vector<torch::optim::OptimizerParamGroup> groups(const Case& c,
                                                      const std::vector<torch::Tensor>& p) {
  return {group_of({p[0], p[1]}, c.options),
          group_of({p[2]}, EquivariantOptions(c.options).lr(0.1))};
}

class SaveLoad : public ::testing::TestWithParam<Case> {};

TEST_P(SaveLoad, GoesOnWithEqualBits) {
  const Case& c = GetParam();
  const std::vector<torch::Tensor> params = {parameter({8, 6}, c.dtype), parameter({8, 6}, c.dtype),
                                             parameter({8, 4}, c.dtype)};
  Equivariant optimizer(groups(c, params), EquivariantOptions(0.02));
  run(optimizer, 3, 1);
  std::stringstream file;
  torch::save(optimizer, file);

  // Everything that the archive says is other here, and the plan has been made.
  Case other = c;
  other.options.update_scale(3.0).momentum(0.1).seed(99);
  Equivariant loaded(groups(other, leaves(params)), EquivariantOptions(0.5));
  run(loaded, 1, 77);
  auto targets = params_of(loaded);
  {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < params.size(); ++i) targets[i].copy_(params[i]);
  }
  torch::load(loaded, file);
  expect_same(picture(loaded), picture(optimizer));
  run(optimizer, 3, 10);
  run(loaded, 3, 10);
  expect_same(picture(loaded), picture(optimizer));
}

INSTANTIATE_TEST_SUITE_P(Rules, SaveLoad, ::testing::ValuesIn(kCases), [](const auto& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), ' ', '_');
  return name;
});

// Saved by version 0.1 (tests/cpp/data): a row_norm group with an lr_scale of 5, as it was called
// then, and an adamw group, after one step with gradients of 0.5.
TEST(SaveLoad, ArchiveOf0_1) {
  Equivariant loaded({group_of({parameter({4, 6})}, rule("row_norm")),
                      group_of({parameter({6, 4})}, rule("adamw"))});
  torch::load(loaded, ERLANGEN_TEST_DATA "/optimizer_0_1.pt");
  const auto options = [&](size_t g) {
    return static_cast<const EquivariantOptions&>(loaded.param_groups()[g].options());
  };
  EXPECT_EQ(options(0).update_scale(), 5.0);
  EXPECT_EQ(options(1).update_scale(), 1.0);
  EXPECT_EQ(options(1).weight_decay(), 0.5);
  EXPECT_EQ(options(0).lr(), 0.02);
  const auto state = [&](size_t g) {
    const auto& param = loaded.param_groups()[g].params()[0];
    return static_cast<const EquivariantParamState&>(
        *loaded.state().at(param.unsafeGetTensorImpl()));
  };
  const double average = (1.0 - 0.95) * 0.5;
  EXPECT_TRUE(at::allclose(state(0).momentum_buffer(), torch::full({4, 6}, average)));
  EXPECT_EQ(state(1).step().item<double>(), 1.0);
  const auto before = copies(params_of(loaded));
  run(loaded, 1, 1);
  // A row moves by lr * update_scale * 0.2 * sqrt(n), decay aside.
  const auto kept = before[0] * (1.0 - 0.02 * options(0).weight_decay());
  const auto length = (params_of(loaded)[0] - kept).norm(2, {1});
  EXPECT_TRUE(at::allclose(length, torch::full({4}, 0.02 * 5.0 * 0.2 * std::sqrt(6.0))));
}

TEST(SaveLoad, EmptyState) {
  const std::vector<torch::Tensor> params = {parameter({4, 6})};
  Muon fresh(params);
  std::stringstream file;
  torch::save(fresh, file);
  Muon loaded(params);
  run(loaded, 1, 1);
  torch::load(loaded, file);
  EXPECT_EQ(loaded.state().size(), 0u);
  run(loaded, 1, 1);
}

TEST(SaveLoad, StateOfSomeParameters) {
  const std::vector<torch::Tensor> params = {parameter({4, 6}), parameter({4, 6})};
  Muon optimizer(params);
  testing::set_grads({params[1]}, 1);
  optimizer.step();
  std::stringstream file;
  torch::save(optimizer, file);
  Muon loaded(leaves(params));
  torch::load(loaded, file);
  EXPECT_EQ(loaded.state().size(), 1u);
  run(optimizer, 2, 3);
  run(loaded, 2, 3);
  expect_same(picture(loaded), picture(optimizer));
}

std::string archive_of(const torch::optim::Optimizer& source) {
  std::stringstream file;
  torch::save(source, file);
  return file.str();
}

// Loads the archive into `target`, which must refuse it and stay as it was.
void expect_refused(const std::string& archive, Equivariant& target,
                    const std::vector<std::string>& words) {
  run(target, 2, 5);
  const auto before = picture(target);
  std::stringstream file(archive);
  expect_raises<c10::Error>(words, [&] { torch::load(target, file); });
  expect_same(picture(target), before);
  run(target, 1, 9);  // and it can go on
}

TEST(SaveLoad, RefusesStateOfAnotherShape) {
  Muon source(std::vector<torch::Tensor>{parameter({6, 4})});
  run(source, 1, 1);
  Muon target(std::vector<torch::Tensor>{parameter({4, 6})});
  expect_refused(archive_of(source), target,
                 {"param_groups[0], parameter 0", "momentum_buffer", "[6, 4]", "[4, 6]"});
}

TEST(SaveLoad, RefusesAnotherNumberOfParametersOrGroups) {
  Muon one(std::vector<torch::Tensor>{parameter({4, 6})});
  Muon two(std::vector<torch::Tensor>{parameter({4, 6}), parameter({4, 6})});
  Muon groups(std::vector<torch::Tensor>{parameter({4, 6})});
  groups.add_param_group(torch::optim::OptimizerParamGroup({parameter({4, 6})}));
  for (Muon* source : {&one, &two, &groups}) run(*source, 1, 1);
  const std::string size = "parameter group that has a different size";
  const std::string number = "different number of parameter groups";
  expect_refused(archive_of(two), one, {size});
  expect_refused(archive_of(one), two, {size});
  expect_refused(archive_of(groups), one, {number});
  expect_refused(archive_of(one), groups, {number});
}

TEST(SaveLoad, RefusesASecondGroupAfterAFirstThatFits) {
  const auto optimizer = [](at::IntArrayRef sizes, double lr) {
    auto result = std::make_unique<Muon>(std::vector<torch::Tensor>{parameter({4, 6})},
                                         EquivariantOptions(lr));
    result->add_param_group(torch::optim::OptimizerParamGroup({parameter(sizes)}));
    run(*result, 1, 1);
    return result;
  };
  expect_refused(archive_of(*optimizer({6, 4}, 0.5)), *optimizer({4, 6}, 0.25),
                 {"param_groups[1], parameter 0", "momentum_buffer", "[6, 4]", "[4, 6]"});
}

TEST(SaveLoad, RefusesARuleThatTheParameterCannotTake) {
  Muon source(std::vector<torch::Tensor>{parameter({4, 6})});
  Equivariant target({group_of({parameter({6})}, rule("adamw"))});
  expect_refused(archive_of(source), target,
                 {"param_groups[0], parameter 0", "[6]", "two dimensions"});
}

// What an archive can hold that a healthy optimizer never does: a change to one that has made a
// step, and what the refusal says.
struct Spoiled {
  const char* name;
  std::function<void(EquivariantOptions&, EquivariantParamState&)> spoil;
  std::vector<std::string> words;
  const char* rule = "spectral";
};

void PrintTo(const Spoiled& c, std::ostream* out) { *out << c.name; }

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
const torch::Tensor kNone;

auto options(std::function<void(EquivariantOptions&)> change) {
  return [change](EquivariantOptions& options, EquivariantParamState&) { change(options); };
}

auto state(std::function<void(EquivariantParamState&)> change) {
  return [change](EquivariantOptions&, EquivariantParamState& state) { change(state); };
}

const std::vector<Spoiled> kSpoiled = {
    {"no_momentum",
     state([](auto& s) { s.momentum_buffer(kNone); }),
     {"parameter 0", "momentum_buffer", "spectral", "another optimizer"}},
    {"no_moment",
     state([](auto& s) { s.exp_avg(kNone); }),
     {"parameter 0", "exp_avg", "adamw"},
     "adamw"},
    {"no_second_moment",
     state([](auto& s) { s.exp_avg_sq(kNone); }),
     {"parameter 0", "exp_avg_sq", "adamw"},
     "adamw"},
    {"no_step", state([](auto& s) { s.step(kNone); }), {"parameter 0", "step", "adamw"}, "adamw"},
    {"step_of_two",
     state([](auto& s) { s.step(torch::ones({2})); }),
     {"parameter 0", "step", "[2]"},
     "adamw"},
    {"negative_step",
     state([](auto& s) { s.step(torch::tensor(-5.0)); }),
     {"parameter 0", "step is -5", ">= 0"},
     "adamw"},
    {"nan_step",
     state([](auto& s) { s.step(torch::tensor(kNan)); }),
     {"parameter 0", "step is nan", ">= 0"},
     "adamw"},
    {"integer_momentum",
     state([](auto& s) {
       s.momentum_buffer(torch::ones({4, 6}, at::kLong));
     }),
     {"parameter 0", "momentum_buffer", "allowed: float32"}},
    {"another_rule",
     options([](auto& o) { o.rule("adamw"); }),
     {"parameter 0", "exp_avg", "adamw"}},
    {"another_rule_back",
     options([](auto& o) { o.rule("hybrid"); }),
     {"parameter 0", "momentum_buffer", "hybrid"},
     "adamw"},
    {"unknown_rule", options([](auto& o) { o.rule("polar"); }), {"rule", "polar", "spectral"}},
    {"negative_lr", options([](auto& o) { o.lr(-1.0); }), {"lr", "-1", ">= 0"}},
    {"nan_momentum", options([](auto& o) { o.momentum(kNan); }), {"momentum", "nan", "[0, 1)"}},
    {"layout_that_does_not_fit",
     options([](auto& o) { o.layout({LayoutStep::heads(5, -2)}); }),
     {"parameter 0", "heads", "5"}},
};

class BadArchive : public ::testing::TestWithParam<Spoiled> {};

TEST_P(BadArchive, IsRefused) {
  const auto make = [] {
    return Equivariant({group_of({parameter({4, 6})}, rule(GetParam().rule))});
  };
  Equivariant source = make(), target = make();
  run(source, 1, 1);
  auto& group = source.param_groups()[0];
  GetParam().spoil(static_cast<EquivariantOptions&>(group.options()),
                   static_cast<EquivariantParamState&>(
                       *source.state().at(group.params()[0].unsafeGetTensorImpl())));
  auto words = GetParam().words;
  words.push_back("param_groups[0]");
  expect_refused(archive_of(source), target, words);
}

INSTANTIATE_TEST_SUITE_P(Spoiled, BadArchive, ::testing::ValuesIn(kSpoiled),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(BadArchive, OfTorchAdamW) {
  torch::optim::AdamW source({parameter({4, 6})});
  run(source, 1, 1);
  for (const char* name : {"spectral", "adamw"}) {
    Equivariant target({group_of({parameter({4, 6})}, rule(name))});
    expect_refused(archive_of(source), target, {"the archive does not fit", "Equivariant"});
  }
}

TEST(BadArchive, Truncated) {
  Muon source(std::vector<torch::Tensor>{parameter({4, 6})});
  run(source, 1, 1);
  const std::string whole = archive_of(source);
  for (const size_t size : {size_t{0}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    Muon target(std::vector<torch::Tensor>{parameter({4, 6})});
    expect_refused(whole.substr(0, size), target, {});
  }
}

}  // namespace
}  // namespace erlangen
