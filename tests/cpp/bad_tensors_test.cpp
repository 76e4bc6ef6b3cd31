// What bad parameters, gradients and groups get: an error that names the parameter, before anything
// has changed.

#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::expect_raises;
using testing::expect_same;
using testing::group_of;
using testing::parameter;
using testing::params_of;
using testing::picture;
using testing::run;
using testing::set_grads;

EquivariantOptions rule(const char* name) { return EquivariantOptions().rule(name); }

template <typename Error>
void expect_refused(const torch::Tensor& bad, const char* rule_name,
                    std::vector<std::string> words) {
  auto in_constructor = words;
  in_constructor.push_back("param_groups[0], parameter 1");
  expect_raises<Error>(in_constructor, [&] {
    Equivariant({group_of({parameter({8, 6}), bad}, rule(rule_name))});
  });
  Muon live(std::vector<torch::Tensor>{parameter({8, 6})});
  run(live, 1, 1);
  const auto before = picture(live);
  words.push_back("param_groups[1], parameter 0");
  expect_raises<Error>(words, [&] { live.add_param_group(group_of({bad}, rule(rule_name))); });
  expect_same(picture(live), before);
}

TEST(BadParameter, Shapes) {
  for (const char* name :
       {"spectral", "right_spectral", "left_spectral", "row_norm", "column_norm", "hybrid"}) {
    expect_refused<c10::ValueError>(parameter({8}), name, {"[8]", "two dimensions", "adamw"});
  }
  expect_refused<c10::ValueError>(parameter({}), "row_norm", {"[]", "adamw"});
  expect_refused<c10::ValueError>(parameter({48}), "spectral",
                                  {"FSDP1", "DeepSpeed's ZeRO", "DDP"});
}

TEST(BadParameter, Types) {
  expect_refused<c10::TypeError>(torch::eye(4).to_sparse(), "adamw", {"parse", "dense"});
  expect_refused<c10::TypeError>(torch::ones({4, 4}, at::kInt), "spectral", {"Int", "float32"});
  expect_refused<c10::TypeError>(torch::ones({4, 4}, at::kComplexFloat), "adamw",
                                 {"omplex", "float32"});
  expect_refused<c10::TypeError>(torch::Tensor(), "spectral", {"undefined"});
}

TEST(BadParameter, OverlapsItself) {
  for (const char* name : {"spectral", "row_norm", "column_norm", "adamw"}) {
    expect_refused<c10::ValueError>(torch::randn({8, 1}).expand({8, 6}), name,
                                    {"one place of memory", "[8, 6]", "[1, 0]"});
  }
}

TEST(BadGroup, Twice) {
  const auto p = parameter({4, 4});
  expect_raises<c10::ValueError>(
      {"param_groups[0], parameter 2", "param_groups[0], parameter 0", "once"}, [&] {
        Muon(std::vector<torch::Tensor>{p, parameter({4, 4}), p});
      });
  expect_raises<c10::ValueError>(
      {"param_groups[1], parameter 0", "param_groups[0], parameter 0", "once"}, [&] {
        Equivariant({group_of({p}, rule("spectral")), group_of({p}, rule("adamw"))});
      });
  Muon live(std::vector<torch::Tensor>{p});
  run(live, 1, 1);
  const auto before = picture(live);
  expect_raises<c10::ValueError>({"param_groups[1], parameter 1", "once"}, [&] {
    live.add_param_group(torch::optim::OptimizerParamGroup({parameter({4, 4}), p}));
  });
  expect_same(picture(live), before);
}

TEST(BadGroup, Empty) {
  using Tensors = std::vector<torch::Tensor>;
  expect_raises<c10::ValueError>({"parameters is empty"}, [] { Muon(Tensors{}); });
  expect_raises<c10::ValueError>({"parameters is empty"}, [] { Equivariant(Tensors{}); });
  expect_raises<c10::ValueError>(
      {"empty"}, [] { Equivariant(std::vector<torch::optim::OptimizerParamGroup>{}); });
}

TEST(BadGroup, ComputedFromOtherTensors) {
  const auto p = parameter({4, 4});
  expect_raises<c10::ValueError>({"param_groups[0], parameter 1", "computed"}, [&] {
    Muon(std::vector<torch::Tensor>{p, p * 2});
  });
}

// torch's own add_param_group is not virtual: what it has added is found by the next step.
TEST(BadGroup, AddedByTheBaseClass) {
  using Group = torch::optim::OptimizerParamGroup;
  const auto p = parameter({4, 4});
  Muon live(std::vector<torch::Tensor>{p});
  torch::optim::Optimizer& base = live;
  run(live, 1, 1);
  const auto before = picture(live);
  const std::vector<std::pair<torch::Tensor, std::vector<std::string>>> cases = {
      {parameter({4}), {"param_groups[1], parameter 0", "[4]", "two dimensions"}},
      {torch::ones({4, 4}, at::kInt), {"param_groups[1], parameter 0", "Int"}},
      {p.detach(), {"param_groups[1], parameter 0", "param_groups[0], parameter 0", "memory"}},
  };
  for (const auto& [bad, words] : cases) {
    base.add_param_group(Group({bad.is_floating_point() ? bad.requires_grad_() : bad}));
    expect_raises<c10::Error>(words, [&] { live.step(); });
    EXPECT_EQ(live.param_groups().size(), 1u);
    expect_same(picture(live), before);
  }
  live.step();  // and nothing stands in the way of going on
  EXPECT_FALSE(testing::same_bits(p, before.tensors[0]));
}

TEST(BadGroup, WithoutARule) {
  using Tensors = std::vector<torch::Tensor>;
  expect_raises<c10::ValueError>({"bare parameters", "param_groups", "Muon"}, [] {
    Equivariant(Tensors{parameter({4, 4})});
  });
  expect_raises<c10::ValueError>({"param_groups[0]", "no rule", "spectral"}, [] {
    Equivariant({group_of({parameter({4, 4})}, EquivariantOptions(0.1))});
  });
  expect_raises<c10::ValueError>({"param_groups[1]", "no rule"}, [] {
    Equivariant live({group_of({parameter({4, 4})}, rule("spectral"))});
    live.add_param_group(torch::optim::OptimizerParamGroup({parameter({4, 4})}));
  });
}

TEST(BadGroup, OptionsOfAnotherOptimizer) {
  expect_raises<c10::TypeError>({"EquivariantOptions"}, [] {
    Equivariant({torch::optim::OptimizerParamGroup(
        {parameter({4, 4})}, std::make_unique<torch::optim::AdamWOptions>())});
  });
}

TEST(BadGroup, NamesOfParametersAreInTheMessage) {
  expect_raises<c10::ValueError>({"role attention", "parameter 1 (q.bias)"}, [] {
    Equivariant({group_of({parameter({4, 4}), parameter({4})},
                          rule("spectral").role("attention").param_names({"q.weight", "q.bias"}))});
  });
}

// Each parameter of an optimizer in turn, under every kind of rule.
class BadStep : public ::testing::TestWithParam<size_t> {
 protected:
  BadStep()
      : optimizer_({group_of({parameter({8, 6}), parameter({4, 4})}, rule("spectral")),
                    group_of({parameter({8, 6})}, rule("row_norm")),
                    group_of({parameter({8}), parameter({8, 6})}, rule("adamw"))}) {
    run(optimizer_, 2, 1);
    set_grads(params_of(optimizer_), 7);
    param_ = params_of(optimizer_)[GetParam()];
  }

  template <typename Error>
  void expect_refused(std::vector<std::string> words) {
    const auto before = picture(optimizer_);
    const size_t group[] = {0, 0, 1, 2, 2}, index[] = {0, 1, 0, 0, 1};
    words.push_back("param_groups[" + std::to_string(group[GetParam()]) + "], parameter " +
                    std::to_string(index[GetParam()]));
    expect_raises<Error>(words, [&] { optimizer_.step(); });
    expect_same(picture(optimizer_), before);
  }

  std::vector<int64_t> threes() const { return std::vector<int64_t>(param_.dim(), 3); }

  Equivariant optimizer_;
  torch::Tensor param_;
};

TEST_P(BadStep, GradientOfAnotherShape) {
  param_.set_data(torch::ones(threes()));
  expect_refused<c10::ValueError>({"gradient", "3"});
}

TEST_P(BadStep, StateOfAnotherShape) {
  param_.set_data(torch::ones(threes()));
  param_.mutable_grad() = torch::ones(threes());
  expect_refused<c10::ValueError>({"state", "3"});
}

// autograd refuses it where it is assigned; mutable_grad() goes past that.
TEST_P(BadStep, GradientOnAnotherDevice) {
  param_.mutable_grad() = torch::ones(param_.sizes(), at::kMeta);
  expect_refused<c10::ValueError>({"gradient is on meta", "parameter on cpu"});
}

TEST_P(BadStep, SparseGradient) {
  param_.mutable_grad() = torch::ones(param_.sizes()).to_sparse();
  expect_refused<c10::TypeError>({"parse", "dense"});
}

TEST_P(BadStep, IntegerGradient) {
  param_.mutable_grad() = torch::ones(param_.sizes(), at::kInt);
  expect_refused<c10::TypeError>({"gradient", "Int", "allowed: float32"});
}

INSTANTIATE_TEST_SUITE_P(Parameters, BadStep, ::testing::Range<size_t>(0, 5));

TEST(BadStep, AtTheFirstStepCreatesNoState) {
  const std::vector<torch::Tensor> params = {parameter({4, 4}), parameter({4, 4})};
  RowNorm optimizer(params);
  params[0].mutable_grad() = torch::ones({4, 4});
  params[1].mutable_grad() = torch::ones({4, 4}).to_sparse();
  const auto before = picture(optimizer);
  expect_raises<c10::TypeError>({"param_groups[0], parameter 1"}, [&] { optimizer.step(); });
  expect_same(picture(optimizer), before);
  EXPECT_EQ(optimizer.state().size(), 0u);
}

}  // namespace
}  // namespace erlangen
