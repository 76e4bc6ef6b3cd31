// Equivariant as a torch::optim::Optimizer: groups and defaults, closures, gradients, presets.

#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::copies;
using testing::expect_same;
using testing::group_of;
using testing::parameter;
using testing::params_of;
using testing::picture;
using testing::run;
using testing::set_grads;

const EquivariantOptions& options_of(Equivariant& optimizer, size_t group) {
  return static_cast<const EquivariantOptions&>(optimizer.param_groups()[group].options());
}

TEST(Optimizer, GroupsBeatDefaults) {
  Equivariant optimizer(
      {group_of({parameter({4, 4})}, EquivariantOptions().rule("spectral")),
       group_of({parameter({4, 4})}, EquivariantOptions(1e-3).momentum(0.5))},  // 1e-3: chosen
      EquivariantOptions(0.5).rule("row_norm").weight_decay(0.25));
  EXPECT_EQ(options_of(optimizer, 0).lr(), 0.5);
  EXPECT_EQ(options_of(optimizer, 0).rule(), "spectral");
  EXPECT_EQ(options_of(optimizer, 0).weight_decay(), 0.25);
  EXPECT_EQ(options_of(optimizer, 1).lr(), 1e-3);
  EXPECT_EQ(options_of(optimizer, 1).rule(), "row_norm");
  EXPECT_EQ(options_of(optimizer, 1).momentum(), 0.5);

  optimizer.add_param_group(
      group_of({parameter({4, 4})}, EquivariantOptions().rule("hybrid").update_scale(2.0)));
  EXPECT_EQ(options_of(optimizer, 2).lr(), 0.5);
  EXPECT_EQ(options_of(optimizer, 2).update_scale(), 2.0);
  optimizer.add_param_group(torch::optim::OptimizerParamGroup({parameter({4, 4})}));
  EXPECT_EQ(options_of(optimizer, 3).rule(), "row_norm");
}

TEST(Optimizer, GroupsOptionsAreCopies) {
  auto group = group_of({parameter({4, 4})}, EquivariantOptions().rule("spectral"));
  Equivariant optimizer({group}, EquivariantOptions(0.5));
  static_cast<EquivariantOptions&>(group.options()).rule("row_norm");
  EXPECT_EQ(options_of(optimizer, 0).rule(), "spectral");
}

TEST(Optimizer, UndefinedGradientsAreLeftAlone) {
  const std::vector<torch::Tensor> params = {parameter({4, 4}), parameter({4, 4})};
  RowNorm optimizer(params);
  params[1].mutable_grad() = torch::ones({4, 4});
  const auto before = copies(params);
  optimizer.step();
  EXPECT_TRUE(torch::equal(params[0], before[0]));
  EXPECT_FALSE(torch::equal(params[1], before[1]));
  EXPECT_EQ(optimizer.state().size(), 1u);
}

TEST(Optimizer, ParametersOfABatchDoNotTouchEachOther) {
  const std::vector<torch::Tensor> params = {parameter({4, 6}), parameter({4, 6})};
  const auto twin = params[1].detach().clone().requires_grad_();
  Muon together(params), alone(std::vector<torch::Tensor>{twin});
  for (int64_t step = 0; step < 3; ++step) {
    set_grads(params, step);
    twin.mutable_grad() = params[1].grad().clone();
    together.step();
    alone.step();
  }
  EXPECT_TRUE(testing::same_bits(params[1], twin));
}

TEST(Optimizer, Closure) {
  const auto w = parameter({4, 4});
  RowNorm optimizer(std::vector<torch::Tensor>{w});
  const torch::NoGradGuard no_grad;  // the closure gets gradients all the same
  const double expected = w.square().sum().item<double>();
  const auto loss = optimizer.step([&] {
    optimizer.zero_grad();
    auto value = w.square().sum();
    value.backward();
    return value;
  });
  EXPECT_EQ(loss.item<double>(), expected);
  EXPECT_LT(w.square().sum().item<double>(), expected);
  EXPECT_FALSE(optimizer.step().defined());
}

TEST(Optimizer, RateSetLaterIsTheRateUsed) {
  const auto a = parameter({4, 4});
  const auto b = a.detach().clone().requires_grad_();
  RowNorm later({a}, EquivariantOptions(0.5)), at_once({b}, EquivariantOptions(0.25));
  later.param_groups()[0].options().set_lr(0.25);
  run(later, 2, 1);
  run(at_once, 2, 1);
  EXPECT_TRUE(testing::same_bits(a, b));
}

std::vector<torch::Tensor> twins(const std::vector<torch::Tensor>& params) {
  auto result = copies(params);
  for (auto& tensor : result) tensor.requires_grad_();
  return result;
}

TEST(Optimizer, ClosureThatThrowsChangesNothing) {
  Muon optimizer(std::vector<torch::Tensor>{parameter({4, 6})});
  run(optimizer, 1, 1);
  const auto before = picture(optimizer);
  EXPECT_THROW(optimizer.step([&]() -> torch::Tensor {
    set_grads(params_of(optimizer), 2);
    throw std::runtime_error("no loss");
  }),
               std::runtime_error);
  expect_same(picture(optimizer), before);
  run(optimizer, 1, 3);
}

TEST(Optimizer, ClippedGradientsAreTheOnesUsed) {
  const std::vector<torch::Tensor> params = {parameter({4, 6}), parameter({4, 6})};
  const auto same = twins(params);
  RowNorm optimizer(params), by_hand(same);
  for (int64_t step = 0; step < 3; ++step) {
    set_grads(params, step);
    set_grads(same, step);
    double squares = 0;
    for (const auto& p : same) squares += p.grad().to(at::kDouble).square().sum().item<double>();
    const double norm = torch::nn::utils::clip_grad_norm_(params, 0.5);
    // `norm` is summed in float32: each of 48 terms and the root round once.
    EXPECT_NEAR(norm, std::sqrt(squares), 50 * 6e-8 * std::sqrt(squares));
    for (const auto& p : same) p.grad().mul_(0.5 / (norm + 1e-6));
    optimizer.step();
    by_hand.step();
  }
  expect_same(picture(optimizer), picture(by_hand));
}

TEST(Optimizer, AccumulatedGradientsAreTheirSum) {
  const std::vector<torch::Tensor> params = {parameter({4, 6})};
  const auto same = twins(params);
  Muon optimizer(params), by_hand(same);
  for (int64_t step = 0; step < 2; ++step) {
    optimizer.zero_grad();
    torch::Tensor sum = torch::zeros({4, 6});
    for (int64_t part = 0; part < 3; ++part) {
      const auto slope = torch::randn({4, 6});
      (params[0] * slope).sum().backward();
      sum += slope;
    }
    same[0].mutable_grad() = sum;
    optimizer.step();
    by_hand.step();
  }
  expect_same(picture(optimizer), picture(by_hand));
}

TEST(Optimizer, AddedGroupChangesNothingForTheOthers) {
  const std::vector<torch::Tensor> params = {parameter({4, 6}), parameter({4, 6})};
  const auto twin = params[0].detach().clone().requires_grad_();
  Muon optimizer({params[0]}), alone({twin});
  run(optimizer, 2, 1);
  run(alone, 2, 1);
  optimizer.add_param_group(torch::optim::OptimizerParamGroup({params[1]}));
  set_grads(params, 5);
  twin.mutable_grad() = params[0].grad().clone();
  optimizer.step();
  alone.step();
  EXPECT_TRUE(testing::same_bits(params[0], twin));
  EXPECT_EQ(optimizer.state().size(), 2u);
}

TEST(Optimizer, GroupsAddedByTheBaseClassAreCompleted) {
  Muon optimizer({parameter({4, 6})}, EquivariantOptions(0.5));
  torch::optim::Optimizer& base = optimizer;
  const auto added = parameter({4, 6}), twin = added.detach().clone().requires_grad_();
  base.add_param_group(torch::optim::OptimizerParamGroup({added}));
  Muon alone({twin}, EquivariantOptions(0.5));
  added.mutable_grad() = torch::ones({4, 6});
  twin.mutable_grad() = torch::ones({4, 6});
  optimizer.step();
  alone.step();
  EXPECT_EQ(options_of(optimizer, 1).rule(), "spectral");
  EXPECT_EQ(options_of(optimizer, 1).lr(), 0.5);
  EXPECT_TRUE(testing::same_bits(added, twin));
  optimizer.param_groups().pop_back();
  optimizer.add_param_group(torch::optim::OptimizerParamGroup({twin}));
  EXPECT_EQ(optimizer.param_groups().size(), 2u);
  optimizer.step();
}

TEST(Optimizer, EmptyGroupsAndParametersAreNothingToDo) {
  const auto p = parameter({4, 6}), twin = p.detach().clone().requires_grad_();
  const auto hollow = torch::empty({0, 6}).requires_grad_(), vector = torch::empty({0});
  Equivariant optimizer(
      {group_of({}, EquivariantOptions().rule("row_norm")),
       group_of({hollow, p, vector.requires_grad_()}, EquivariantOptions().rule("spectral"))});
  Equivariant alone({group_of({twin}, EquivariantOptions().rule("spectral"))});
  optimizer.add_param_group(group_of({}, EquivariantOptions().rule("adamw")));
  for (int64_t step = 0; step < 2; ++step) {
    run(optimizer, 1, step);
    twin.mutable_grad() = p.grad().clone();
    alone.step();
  }
  EXPECT_TRUE(testing::same_bits(p, twin));
  EXPECT_EQ(optimizer.state().size(), 3u);
  EXPECT_NE(optimizer.explain().find("0×6"), std::string::npos);
}

TEST(Optimizer, MuonTakesKernels) {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{8, 2, 3, 3}, {8, 2, 1, 3, 2}}) {
    const auto kernel = parameter(sizes);
    const auto matrix = kernel.detach().reshape({8, -1}).clone().requires_grad_();
    Muon of_kernel({kernel}), of_matrix({matrix});
    kernel.mutable_grad() = torch::randn(sizes);
    matrix.mutable_grad() = kernel.grad().reshape({8, -1}).clone();
    of_kernel.step();
    of_matrix.step();
    EXPECT_TRUE(testing::same_bits(kernel.detach().reshape({8, -1}), matrix));
  }
  Muon batch({parameter({3, 4, 6})});
  EXPECT_NE(batch.explain().find("3 of 4×6"), std::string::npos);
}

TEST(Optimizer, RuleChangedBetweenSteps) {
  const auto a = parameter({4, 6});
  RowNorm optimizer({a});
  run(optimizer, 1, 1);
  const auto b = a.detach().clone().requires_grad_();
  Hybrid other({b});  // with the same momentum, which the changed rule goes on from
  auto state = std::make_unique<EquivariantParamState>();
  state->momentum_buffer(picture(optimizer).tensors[1]);
  other.state()[b.unsafeGetTensorImpl()] = std::move(state);
  expect_same(picture(other).tensors, picture(optimizer).tensors);
  static_cast<EquivariantOptions&>(optimizer.param_groups()[0].options()).rule("hybrid");
  run(optimizer, 1, 2);
  run(other, 1, 2);
  expect_same(picture(optimizer), picture(other));
}

TEST(Optimizer, Moves) {
  const auto a = parameter({4, 6});
  const auto b = a.detach().clone().requires_grad_();
  Muon source({a}), still({b});
  run(source, 1, 1);
  Muon moved(std::move(source));
  run(moved, 1, 2);
  run(still, 1, 1);
  run(still, 1, 2);
  expect_same(picture(moved), picture(still));
}

TEST(Optimizer, Presets) {
  const auto rule = [](Equivariant&& optimizer) { return options_of(optimizer, 0).rule(); };
  const std::vector<torch::Tensor> bare = {parameter({4, 6})};
  EXPECT_EQ(rule(Muon(bare)), "spectral");
  EXPECT_EQ(rule(PolarGrad(bare)), "spectral");
  EXPECT_EQ(rule(RowNorm(bare)), "row_norm");
  EXPECT_EQ(rule(RightSpectral(bare)), "right_spectral");
  EXPECT_EQ(rule(LeftSpectral(bare)), "left_spectral");
  EXPECT_EQ(rule(Hybrid(bare)), "hybrid");
  Muon muon(bare, EquivariantOptions(0.5).adjust_lr_fn("none"));
  EXPECT_EQ(options_of(muon, 0).weight_decay(), 0.1);
  EXPECT_EQ(options_of(muon, 0).adjust_lr_fn(), "none");
  EXPECT_EQ(options_of(muon, 0).lr(), 0.5);
  EXPECT_EQ(options_of(muon, 0).nesterov(), true);
  PolarGrad polar(bare);
  EXPECT_EQ(options_of(polar, 0).alpha(), 1.0);
}

TEST(Optimizer, Explain) {
  Equivariant optimizer({group_of({parameter({8, 6})}, EquivariantOptions()
                                                           .rule("spectral")
                                                           .role("attention")
                                                           .layout({LayoutStep::heads(2, -2)})
                                                           .param_names({"q.weight"}))});
  const std::string table = optimizer.explain();
  for (const char* word : {"q.weight", "8×6", "attention", "spectral", "2 of 4×6"}) {
    EXPECT_NE(table.find(word), std::string::npos) << word << " in\n" << table;
  }
}

TEST(Optimizer, TrainsAModel) {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Embedding(7, 6), torch::nn::Linear(6, 8),
                              torch::nn::LayerNorm(torch::nn::LayerNormOptions({8})));
  Equivariant optimizer(param_groups(*model), EquivariantOptions(0.05));
  const auto target = torch::randn({7, 8});
  const auto loss = [&] { return (model->forward(torch::arange(7)) - target).square().mean(); };
  const double before = loss().item<double>();
  for (int step = 0; step < 30; ++step) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  }
  EXPECT_LT(loss().item<double>(), 0.7 * before);
}

}  // namespace
}  // namespace erlangen
