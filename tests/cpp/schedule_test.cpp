// Learning rates: torch's schedulers and one's own act as rates set by hand do, and a rate of zero
// or a gradient of zero moves nothing.

#include <functional>

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

const char* const kRules[] = {"spectral",    "right_spectral", "left_spectral", "row_norm",
                              "column_norm", "hybrid",         "adamw"};

// A scheduler of the user's own: each group's rate falls by a tenth at each step.
class Falling : public torch::optim::LRScheduler {
 public:
  using LRScheduler::LRScheduler;

 private:
  std::vector<double> get_lrs() override {
    auto rates = get_current_lrs();
    for (double& rate : rates) rate *= 0.9;
    return rates;
  }
};

struct Schedule {
  const char* name;
  // Makes the scheduler; what it returns steps it.
  std::function<std::function<void()>(torch::optim::Optimizer&)> make;
  std::vector<double> factors;  // by which each step() changes the rates
};

void PrintTo(const Schedule& schedule, std::ostream* out) { *out << schedule.name; }

const std::vector<Schedule> kSchedules = {
    {"StepLR",
     [](torch::optim::Optimizer& optimizer) {
       auto schedule = std::make_shared<torch::optim::StepLR>(optimizer, 2, 0.1);
       return [schedule] { schedule->step(); };
     },
     {1.0, 1.0, 0.1, 1.0, 0.1}},
    {"ReduceLROnPlateau",  // of a loss that never falls: the first one is the best
     [](torch::optim::Optimizer& optimizer) {
       using torch::optim::ReduceLROnPlateauScheduler;
       auto schedule = std::make_shared<ReduceLROnPlateauScheduler>(
           optimizer, ReduceLROnPlateauScheduler::min, /*factor=*/0.5f, /*patience=*/0);
       return [schedule] { schedule->step(1.0f); };
     },
     {1.0, 0.5, 0.5, 0.5, 0.5}},
    {"Own",
     [](torch::optim::Optimizer& optimizer) {
       auto schedule = std::make_shared<Falling>(optimizer);
       return [schedule] { schedule->step(); };
     },
     {0.9, 0.9, 0.9, 0.9, 0.9}},
};

class Scheduler : public ::testing::TestWithParam<Schedule> {};

TEST_P(Scheduler, ActsAsRatesSetByHand) {
  const auto optimizer_of = [](const std::vector<torch::Tensor>& params) {
    return Equivariant({group_of({params[0]}, EquivariantOptions().rule("spectral")),
                        group_of({params[1]}, EquivariantOptions(0.5).rule("row_norm")),
                        group_of({params[2]}, EquivariantOptions(0.25).rule("adamw"))},
                       EquivariantOptions(1.0));
  };
  const std::vector<torch::Tensor> params = {parameter({4, 6}), parameter({4, 6}), parameter({4})};
  auto same = copies(params);
  for (auto& tensor : same) tensor.requires_grad_();
  Equivariant optimizer = optimizer_of(params), by_hand = optimizer_of(same);
  const auto step = GetParam().make(optimizer);
  run(optimizer, 1, 0);
  run(by_hand, 1, 0);
  for (size_t i = 0; i < GetParam().factors.size(); ++i) {
    step();
    for (auto& group : by_hand.param_groups()) {
      group.options().set_lr(group.options().get_lr() * GetParam().factors[i]);
    }
    run(optimizer, 1, 1 + i);
    run(by_hand, 1, 1 + i);
    expect_same(picture(optimizer), picture(by_hand));
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Scheduler, ::testing::ValuesIn(kSchedules),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(LearningRate, ZeroChangesNoParameter) {
  for (const char* rule : kRules) {
    for (const char* decay : {"decoupled", "cautious"}) {
      for (const bool rounding : {false, true}) {
        Equivariant optimizer(
            {group_of({parameter({4, 6}, rounding ? at::kBFloat16 : at::kFloat)},
                      EquivariantOptions(0.0).rule(rule).decay(decay).weight_decay(0.5))},
            EquivariantOptions().stochastic_rounding(rounding));
        const auto before = copies(params_of(optimizer));
        run(optimizer, 3, 1);
        SCOPED_TRACE(std::string(rule) + " " + decay);
        expect_same(copies(params_of(optimizer)), before);
      }
    }
  }
}

TEST(LearningRate, ZeroGradientOnFreshStateWithoutDecayChangesNoParameter) {
  for (const char* rule : kRules) {
    Equivariant optimizer(
        {group_of({parameter({4, 6})}, EquivariantOptions(0.5).rule(rule).weight_decay(0.0))});
    const auto before = copies(params_of(optimizer));
    for (int step = 0; step < 2; ++step) {
      for (auto& p : params_of(optimizer)) p.mutable_grad() = torch::zeros_like(p);
      optimizer.step();
    }
    SCOPED_TRACE(rule);
    expect_same(copies(params_of(optimizer)), before);
  }
}

}  // namespace
}  // namespace erlangen
