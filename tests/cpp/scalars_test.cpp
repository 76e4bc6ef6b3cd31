// Numbers of a step that lie in tensors: rates, the gradients' scale, overflow. What a GPU does
// with them is followed here on CPU tensors, through take_step, which reads none on the host.

#include <cmath>
#include <limits>
#include <list>

#include "reference.h"
#include "step.h"
#include "test_helpers.h"

namespace erlangen {
namespace {

using testing::expect_raises;
using testing::expect_same;
using testing::group_of;
using testing::parameter;
using testing::params_of;
using testing::picture;
using testing::set_grads;

torch::Tensor scalar(double value) { return torch::tensor(static_cast<float>(value)); }

EquivariantOptions rule(const char* name) { return EquivariantOptions(0.25).rule(name); }

struct Case {
  const char* name;
  EquivariantOptions options;
  at::ScalarType dtype = at::kFloat;
};

// One for each way through a step.
std::vector<Case> cases() {
  return {
      {"spectral", rule("spectral")},
      {"polar_first", rule("spectral").momentum_order("polar_first")},
      {"right_spectral", rule("right_spectral").alpha(1.0)},
      {"row_norm", rule("row_norm").center(true)},
      {"column_norm", rule("column_norm").decay("cautious")},
      {"hybrid", rule("hybrid").support("gradient")},
      {"rounded", rule("hybrid").stochastic_rounding(true), at::kBFloat16},
      {"bfloat16 state", rule("spectral").state_dtype("bfloat16")},
      {"float64", rule("spectral"), at::kDouble},
      {"adamw", rule("adamw").update_scale(2.0)},
      {"adamw by reference", rule("adamw").decay("cautious").maximize(true)},
      {"adamw rounded", rule("adamw").stochastic_rounding(true), at::kBFloat16},
  };
}

// Parameters and their state, stepped as a GPU would.
struct Stepped {
  explicit Stepped(const Case& c,
                   const std::vector<std::vector<int64_t>>& shapes = {{6, 4}, {6, 4}, {4, 6}}) {
    torch::manual_seed(3);
    group.options = c.options;
    for (const auto& sizes : shapes) {
      group.params.push_back(parameter(sizes, c.dtype));
      group.states.push_back(&states.emplace_back());
    }
  }

  void step(int64_t seed, const StepInputs& inputs, double grad_factor = 1.0) {
    set_grads(group.params, seed);
    for (const auto& param : group.params) param.mutable_grad().mul_(grad_factor);
    take(inputs);
  }

  void take(const StepInputs& inputs) {
    std::vector<StepGroup> groups = {group};
    plan.update(groups);
    take_step(plan, groups, inputs);
  }

  std::vector<torch::Tensor> tensors() const {
    std::vector<torch::Tensor> result;
    for (const auto& param : group.params) result.push_back(param.detach().clone());
    for (const auto& state : states) {
      for (const auto& tensor :
           {state.momentum_buffer(), state.exp_avg(), state.exp_avg_sq(), state.step()}) {
        if (tensor.defined()) result.push_back(tensor.clone());
      }
    }
    return result;
  }

  StepGroup group;
  std::list<EquivariantParamState> states;
  Plan plan;
};

TEST(Scalars, OverflowLeavesEveryBit) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Stepped run(c), without(c);
    for (int64_t step = 0; step < 3; ++step) {
      run.step(step, {scalar(1.0), scalar(0.0)});
      without.step(step, {scalar(1.0), scalar(0.0)});
      const auto before = run.tensors();
      for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
        run.step(100 + step, {scalar(1.0), scalar(2.0)}, bad);  // two devices have found one
        expect_same(run.tensors(), before);
      }
    }
    // The count too: the next step is the one that an optimizer without overflows takes.
    expect_same(run.tensors(), without.tensors());
    run.step(7, {scalar(1.0), scalar(0.0)});
    without.step(7, {scalar(1.0), scalar(0.0)});
    expect_same(run.tensors(), without.tensors());
  }
}

TEST(Scalars, OverflowInTheFirstStepLeavesZeros) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Stepped run(c), without(c);
    const auto start = run.tensors();  // no state yet
    run.step(1, {scalar(1.0), scalar(1.0)}, std::numeric_limits<double>::infinity());
    const auto after = run.tensors();
    expect_same({after.begin(), after.begin() + 3}, start);
    for (size_t i = 3; i < after.size(); ++i) EXPECT_FALSE(after[i].any().item<bool>());
    run.step(2, {scalar(1.0), scalar(0.0)});
    without.step(2, {scalar(1.0), scalar(0.0)});
    expect_same(run.tensors(), without.tensors());
  }
}

TEST(Scalars, GradientsAreDividedByTheirScale) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Stepped scaled(c), plain(c);
    for (int64_t step = 0; step < 3; ++step) {
      scaled.step(step, {scalar(1024.0), {}}, 1024.0);  // a power of two: exact
      plain.step(step, {scalar(1.0), {}});
    }
    expect_same(scaled.tensors(), plain.tensors());
  }
}

// Of one update: a tensor in place of a number rounds two products more, each entry by 2^-24 of
// itself.
void expect_close(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const double storage = a[i].scalar_type() == at::kBFloat16 ? 0x1p-7 : 0x1p-21;
    EXPECT_TRUE(torch::allclose(a[i].to(at::kDouble), b[i].to(at::kDouble), storage, storage))
        << "tensor " << i;
  }
}

TEST(Scalars, RatesInTensorsAreTheRates) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Stepped tensors(c), numbers(c), other(c);
    tensors.group.options.lr(1e6).weight_decay(1e6);  // not read
    tensors.group.lr = torch::tensor({0.125}, at::kDouble);
    tensors.group.weight_decay = scalar(0.5);
    numbers.group.options.lr(0.125).weight_decay(0.5);
    other.group.options.weight_decay(0.5);
    tensors.step(1, {});
    numbers.step(1, {scalar(1.0), {}});  // by the reference operations too
    other.step(1, {scalar(1.0), {}});
    expect_close(tensors.tensors(), numbers.tensors());
    EXPECT_FALSE(torch::allclose(tensors.tensors()[0], other.tensors()[0], 0.01, 0.01));
    tensors.group.lr.fill_(0.0);  // seen by the next step
    const auto before = tensors.tensors();
    tensors.step(2, {});
    const auto after = tensors.tensors();
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(torch::equal(after[i], before[i]));
  }
}

// Of gradients +-1, in turns along rows and columns, of which there are powers of two, all rules
// have exact directions: kernels and reference operations agree to the bit.
void checkerboard_grads(const std::vector<torch::Tensor>& params) {
  for (const auto& param : params) {
    const auto row = torch::arange(param.size(0)).unsqueeze(1);
    const auto odd = (row + torch::arange(param.size(1))).remainder(2);
    param.mutable_grad() = (1 - 2 * odd).to(param.scalar_type());
  }
}

TEST(Scalars, KernelsReadRatesFromTensors) {
  const std::vector<Case> fused_cases = {
      {"row_norm", rule("row_norm")},
      {"row_norm cautious", rule("row_norm").decay("cautious")},
      {"row_norm support", rule("row_norm").support("gradient")},
      {"row_norm rounded", rule("row_norm").stochastic_rounding(true), at::kBFloat16},
      {"row_norm float64", rule("row_norm"), at::kDouble},
      {"centered", rule("row_norm").center(true)},
      {"centered float64", rule("row_norm").center(true), at::kDouble},
      {"column_norm", rule("column_norm")},
      {"column_norm cautious", rule("column_norm").decay("cautious")},
      {"column_norm bfloat16", rule("column_norm"), at::kBFloat16},
      {"column_norm float64", rule("column_norm"), at::kDouble},
      {"spectral", rule("spectral")},
      {"spectral cautious", rule("spectral").decay("cautious")},
      {"spectral rounded", rule("spectral").stochastic_rounding(true), at::kBFloat16},
      {"spectral float64", rule("spectral"), at::kDouble},
  };
  for (Case c : fused_cases) {
    c.options.momentum(0.0).adjust_lr_fn("none");
    const std::vector<std::array<double, 3>> one_step = {{1.5, -0.5, 0.0}};
    c.options.ns_coefficients(one_step).ns_steps(1).ns_dtype("float32");
    for (const bool lr_in_tensor : {false, true}) {
      for (const bool decay_in_tensor : {false, true}) {
        SCOPED_TRACE(::testing::Message() << c.name << ", in tensors: lr " << lr_in_tensor
                                          << " weight_decay " << decay_in_tensor);
        Stepped fused(c, {{16, 4}, {4, 16}}), reference(c, {{16, 4}, {4, 16}});
        for (const double size : {0.1, 0.7}) {  // the second step sees new numbers
          for (Stepped* each : {&fused, &reference}) {
            StepGroup& group = each->group;
            group.options.lr(lr_in_tensor ? 1e6 : size);  // 1e6: not read
            group.options.weight_decay(decay_in_tensor ? 1e6 : 3 * size);
            if (lr_in_tensor) group.lr = scalar(size);
            if (decay_in_tensor) group.weight_decay = scalar(3 * size);
            checkerboard_grads(group.params);
          }
          const auto before = fused.tensors();
          const int64_t count = kernel_count();
          fused.take({});
          EXPECT_EQ(kernel_count(), count + 2);
          use_kernels(false);
          reference.take({});
          use_kernels(true);
          EXPECT_EQ(kernel_count(), count + 2);
          expect_same(fused.tensors(), reference.tensors());
          for (size_t i = 0; i < 2; ++i) {
            EXPECT_FALSE(torch::equal(fused.tensors()[i], before[i]));
          }
        }
      }
    }
  }
}

TEST(Scalars, LrAloneInATensorGoesThroughTorchsFusedKernel) {
  Case c{"adamw", rule("adamw").update_scale(0.5).weight_decay(0.5)};
  Stepped tensors(c), numbers(c);
  tensors.group.options.lr(1e6);
  tensors.group.lr = scalar(0.25);
  for (int64_t step = 0; step < 3; ++step) {
    tensors.step(step, {});
    numbers.step(step, {});
  }
  expect_same(tensors.tensors(), numbers.tensors());  // powers of two
}

TEST(Scalars, OptimizerReadsWhatItIsGiven) {
  const auto make = [] {
    torch::manual_seed(3);
    return Equivariant({group_of({parameter({6, 4})}, rule("spectral")),
                        group_of({parameter({6})}, rule("adamw"))});
  };
  Equivariant optimizer = make(), plain = make();
  for (int64_t step = 0; step < 2; ++step) {
    set_grads(params_of(optimizer), step);
    set_grads(params_of(plain), step);
    for (const auto& param : params_of(optimizer)) param.mutable_grad().mul_(8.0);
    const auto before = picture(optimizer);
    optimizer.set_grad_scale(scalar(8.0), scalar(1.0));
    optimizer.step();
    expect_same(picture(optimizer), before);
    EXPECT_EQ(optimizer.state().size(), before.states);
    optimizer.set_grad_scale(scalar(8.0), scalar(0.0));
    optimizer.step();
    plain.step();
    expect_same(picture(optimizer), picture(plain));
  }
  optimizer.set_grad_scale({}, {});
  optimizer.set_lr_tensor(1, scalar(0.0));
  const auto before = picture(optimizer);
  testing::run(optimizer, 1, 5);
  testing::run(plain, 1, 5);
  EXPECT_TRUE(torch::equal(params_of(optimizer)[1], before.tensors[5]));
  EXPECT_TRUE(torch::equal(params_of(optimizer)[0], params_of(plain)[0]));
  optimizer.set_lr_tensor(1, {});
  testing::run(optimizer, 1, 5);
  EXPECT_FALSE(torch::equal(params_of(optimizer)[1], before.tensors[5]));
}

TEST(Scalars, RefusesWhatIsNoNumber) {
  Equivariant optimizer({group_of({parameter({6, 4})}, rule("spectral"))});
  expect_raises<c10::ValueError>({"lr", "[2]", "one real number"},
                                 [&] { optimizer.set_lr_tensor(0, torch::ones({2})); });
  expect_raises<c10::ValueError>({"group is 1", "less than 1"},
                                 [&] { optimizer.set_lr_tensor(1, torch::ones({})); });
  expect_raises<c10::ValueError>({"found_inf", "Long"}, [&] {
    optimizer.set_grad_scale(torch::ones({}), torch::ones({}, at::kLong));
  });
}

}  // namespace
}  // namespace erlangen
