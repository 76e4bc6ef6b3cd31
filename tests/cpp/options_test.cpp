// EquivariantOptions: names, defaults, which were set, filling up, archives.

#include <sstream>

#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::expect_raises;
using Triples = std::vector<std::array<double, 3>>;

c10::IValue list(std::vector<c10::IValue> items) {
  c10::impl::GenericList result(c10::AnyType::get());
  for (auto& item : items) result.push_back(std::move(item));
  return result;
}

c10::IValue dict(std::vector<std::pair<std::string, c10::IValue>> items) {
  c10::impl::GenericDict result(c10::StringType::get(), c10::AnyType::get());
  for (auto& [key, value] : items) result.insert(key, std::move(value));
  return result;
}

// Options that all differ from their defaults.
EquivariantOptions unusual() {
  return EquivariantOptions(0.5)
      .update_scale(2.0)
      .weight_decay(0.25)
      .decay("cautious")
      .rule("hybrid")
      .order("polar_then_row")
      .center(true)
      .layout({LayoutStep::flatten(), LayoutStep::transpose(), LayoutStep::sections({3, 5}, -1),
               LayoutStep::heads(4, -2), LayoutStep::pairs("interleaved", -1)})
      .support("gradient")
      .momentum(0.125)
      .nesterov(true)
      .momentum_order("polar_first")
      .alpha(0.75)
      .adjust_lr_fn("none")
      .ns_coefficients(Triples{{3.4445, -4.775, 2.0315}, {0.1, 0.2, 0.3}})
      .ns_steps(7)
      .ns_method("exact")
      .ns_dtype("bfloat16")
      .ns_eps(1e-7)
      .betas({0.1, 0.2})
      .eps(1e-3)
      .state_dtype("bfloat16")
      .stochastic_rounding(true)
      .seed(-(int64_t{1} << 62))
      .maximize(true)
      .capturable(true)
      .role("lm_head")
      .param_names({"a", "b.c"})
      .evidence({"declared", "assumed"})
      .why({"a table", "a Linear"});
}

TEST(Options, Defaults) {
  const EquivariantOptions o;
  EXPECT_EQ(o.lr(), 1e-3);
  EXPECT_EQ(o.update_scale(), 1.0);
  EXPECT_EQ(o.weight_decay(), 1e-2);
  EXPECT_EQ(o.decay(), "decoupled");
  EXPECT_EQ(o.rule(), "");
  EXPECT_EQ(o.order(), "row_then_polar");
  EXPECT_FALSE(o.center());
  EXPECT_TRUE(o.layout().empty());
  EXPECT_EQ(o.support(), "all");
  EXPECT_EQ(o.momentum(), 0.95);
  EXPECT_EQ(o.nesterov(), std::nullopt);
  EXPECT_EQ(o.momentum_order(), "momentum_first");
  EXPECT_EQ(o.alpha(), 0.0);
  EXPECT_EQ(o.adjust_lr_fn(), "match_rms_adamw");
  EXPECT_EQ(o.ns_coefficients(), NsCoefficients("polar_express"));
  EXPECT_EQ(o.ns_steps(), std::nullopt);
  EXPECT_EQ(o.ns_method(), "auto");
  EXPECT_EQ(o.ns_dtype(), "auto");
  EXPECT_EQ(o.betas(), std::make_tuple(0.9, 0.95));
  EXPECT_EQ(o.eps(), 1e-8);
  EXPECT_EQ(o.state_dtype(), "auto");
  EXPECT_FALSE(o.stochastic_rounding());
  EXPECT_EQ(o.seed(), 0);
  EXPECT_FALSE(o.maximize());
  EXPECT_FALSE(o.capturable());
}

TEST(Options, NothingIsSetAtFirstAndEverythingAfterItsSetter) {
  for (const auto& name : EquivariantOptions::names()) {
    EXPECT_FALSE(EquivariantOptions().is_set(name)) << name;
    EXPECT_TRUE(unusual().is_set(name)) << name;
  }
  EXPECT_TRUE(EquivariantOptions(1e-3).is_set("lr"));
  EXPECT_FALSE(EquivariantOptions(1e-3).is_set("momentum"));
}

TEST(Options, GetAndSetByNameAreTheSetters) {
  EquivariantOptions copied;
  const EquivariantOptions source = unusual();
  EXPECT_FALSE(copied == source);
  for (const auto& name : EquivariantOptions::names()) {
    copied.set(name, source.get(name));
    EXPECT_TRUE(copied.is_set(name)) << name;
  }
  EXPECT_TRUE(copied == source);
}

TEST(Options, EqualityLooksAtEveryOption) {
  for (const auto& name : EquivariantOptions::names()) {
    EquivariantOptions o;
    o.set(name, unusual().get(name));
    EXPECT_FALSE(o == EquivariantOptions()) << name;
  }
}

TEST(Options, SetTakesPlainValues) {
  EquivariantOptions o;
  o.set("lr", int64_t{2});
  EXPECT_EQ(o.lr(), 2.0);
  o.set("nesterov", c10::IValue());
  EXPECT_EQ(o.nesterov(), std::nullopt);
  o.set("betas", list({0.5, 0.25}));
  EXPECT_EQ(o.betas(), std::make_tuple(0.5, 0.25));
  o.set("ns_coefficients", list({1.5, -0.5, 0.0}));
  EXPECT_EQ(o.ns_coefficients(), NsCoefficients(Triples{{1.5, -0.5, 0.0}}));
  o.set("layout", list({dict({{"sections", list({int64_t{3}, int64_t{5}})}, {"dim", int64_t{-1}}}),
                        dict({{"transpose", true}})}));
  EXPECT_EQ(o.layout(), (Layout{LayoutStep::sections({3, 5}, -1), LayoutStep::transpose()}));
  o.set("layout", c10::IValue());
  EXPECT_TRUE(o.layout().empty());
}

TEST(Options, SetRefusesOtherTypesAndKeepsItsValue) {
  EquivariantOptions o = unusual();
  const auto refuse = [&](const std::string& name, c10::IValue value, const char* shown) {
    expect_raises<c10::TypeError>({name, shown}, [&] { o.set(name, value); });
  };
  refuse("lr", "fast", "fast");
  refuse("lr", true, "True");
  refuse("lr", c10::IValue(), "None");
  refuse("rule", int64_t{3}, "3");
  refuse("center", int64_t{1}, "1");
  refuse("seed", 1.5, "1.5");
  refuse("ns_steps", 2.5, "2.5");
  refuse("betas", list({0.9}), "0.9");
  refuse("ns_coefficients", list({1.0, 2.0}), "2");
  refuse("layout", "transpose", "transpose");
  refuse("layout", list({"transpose"}), "transpose");
  refuse("param_names", "weight", "weight");
  EXPECT_TRUE(o == unusual());
}

TEST(Options, UnknownNames) {
  EquivariantOptions o;
  const std::vector<std::string> words = {"learning_rate", "lr", "weight_decay", "momentum"};
  expect_raises<c10::ValueError>(words, [&] { o.set("learning_rate", 1.0); });
  expect_raises<c10::ValueError>(words, [&] { o.get("learning_rate"); });
  expect_raises<c10::ValueError>(words, [&] { o.is_set("learning_rate"); });
}

TEST(Options, FlattenSaysWhichTensors) {
  EquivariantOptions o;
  o.set("layout", list({dict({{"flatten", "kernels"}})}));
  EXPECT_EQ(o.layout(), Layout{LayoutStep::flatten_kernels()});
  EquivariantOptions same;
  same.set("layout", o.get("layout"));
  EXPECT_TRUE(same == o);
  o.set("layout", list({dict({{"flatten", true}})}));
  EXPECT_EQ(o.layout(), Layout{LayoutStep::flatten()});
}

TEST(Options, FillFromTakesWhatWasNotChosen) {
  auto o = EquivariantOptions().momentum(0.95).rule("row_norm");  // 0.95 is the default, and chosen
  o.fill_from(unusual());
  EXPECT_EQ(o.momentum(), 0.95);
  EXPECT_EQ(o.rule(), "row_norm");
  EXPECT_EQ(o.lr(), 0.5);
  EXPECT_EQ(o.layout(), unusual().layout());
  EXPECT_TRUE(o.is_set("lr"));
}

TEST(Options, LearningRateForSchedulers) {
  EquivariantOptions o(0.5);
  torch::optim::OptimizerOptions& base = o;
  EXPECT_EQ(base.get_lr(), 0.5);
  base.set_lr(0.25);
  EXPECT_EQ(o.lr(), 0.25);
}

TEST(Options, CloneKeepsValuesAndWhatWasSet) {
  const auto o = EquivariantOptions(0.5).rule("spectral");
  const auto group = testing::group_of({}, o);
  const torch::optim::OptimizerParamGroup copy(group);  // clones its options
  const auto& options = static_cast<const EquivariantOptions&>(copy.options());
  EXPECT_TRUE(options == o);
  EXPECT_TRUE(options.is_set("rule"));
  EXPECT_FALSE(options.is_set("momentum"));
}

TEST(Options, Archive) {
  for (const EquivariantOptions& o : {EquivariantOptions(), unusual()}) {
    std::stringstream file;
    torch::serialize::OutputArchive out;
    o.serialize(out);
    out.save_to(file);
    torch::serialize::InputArchive in;
    in.load_from(file);
    EquivariantOptions loaded(0);
    loaded.serialize(in);
    for (const auto& name : EquivariantOptions::names()) {
      EquivariantOptions one, other;
      one.set(name, o.get(name));
      other.set(name, loaded.get(name));
      EXPECT_TRUE(one == other) << name;
    }
    EXPECT_TRUE(loaded == o);
  }
}

TEST(Options, ArchiveOf0_1CallsUpdateScaleLrScale) {
  std::stringstream file;
  torch::serialize::OutputArchive out;
  out.write("lr_scale", c10::IValue(5.0));
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  EquivariantOptions loaded;
  loaded.serialize(in);
  EXPECT_EQ(loaded.update_scale(), 5.0);
  EXPECT_TRUE(loaded.is_set("update_scale"));
}

TEST(Options, ArchiveWithoutAKeyKeepsTheDefault) {
  std::stringstream file;
  torch::serialize::OutputArchive out;
  out.write("lr", c10::IValue(0.5));
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  EquivariantOptions loaded(0);
  loaded.serialize(in);
  EXPECT_TRUE(loaded == EquivariantOptions(0.5));
  EXPECT_FALSE(loaded.is_set("momentum"));
}

}  // namespace
}  // namespace erlangen
