// What the tests of the C++ optimizer share.
#pragma once

#include <erlangen/erlangen.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "ivalue.h"

namespace erlangen::testing {

using torch::optim::OptimizerParamGroup;

inline torch::Tensor parameter(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return torch::randn(sizes, at::dtype(dtype)).requires_grad_();
}

inline OptimizerParamGroup group_of(std::vector<torch::Tensor> params, EquivariantOptions options) {
  return {std::move(params), std::make_unique<EquivariantOptions>(std::move(options))};
}

inline std::vector<torch::Tensor> params_of(torch::optim::Optimizer& optimizer) {
  std::vector<torch::Tensor> params;
  for (auto& group : optimizer.param_groups()) {
    params.insert(params.end(), group.params().begin(), group.params().end());
  }
  return params;
}

// The next gradients of a sequence that begins with `seed`.
inline void set_grads(const std::vector<torch::Tensor>& params, int64_t seed) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (const auto& param : params) {
    param.mutable_grad() =
        at::randn(param.sizes(), generator, at::dtype(at::kDouble)).to(param.scalar_type());
  }
}

inline void run(torch::optim::Optimizer& optimizer, int64_t steps, int64_t seed) {
  for (int64_t i = 0; i < steps; ++i) {
    set_grads(params_of(optimizer), seed + i);
    optimizer.step();
  }
}

inline std::vector<torch::Tensor> copies(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> result;
  for (const auto& tensor : tensors) result.push_back(tensor.detach().clone());
  return result;
}

// An optimizer at one moment. Parameters and state are in an order that two optimizers of the same
// groups share; a state tensor that is not there counts as an empty one.
struct Picture {
  std::vector<torch::Tensor> tensors;
  size_t states = 0;
  std::vector<std::string> options;  // of all groups, such as "group 0: lr = 0.5"
};

inline Picture picture(torch::optim::Optimizer& optimizer) {
  Picture result;
  result.states = optimizer.state().size();
  for (size_t g = 0; g < optimizer.param_groups().size(); ++g) {
    const auto& options =
        static_cast<const EquivariantOptions&>(optimizer.param_groups()[g].options());
    for (const auto& name : EquivariantOptions::names()) {
      result.options.push_back("group " + std::to_string(g) + ": " + name + " = " +
                               repr(options.get(name)));
    }
  }
  auto& tensors = result.tensors;
  for (const auto& param : params_of(optimizer)) {
    tensors.push_back(param.detach().clone());
    const auto found = optimizer.state().find(param.unsafeGetTensorImpl());
    if (found == optimizer.state().end()) continue;
    const auto& state = static_cast<const EquivariantParamState&>(*found->second);
    for (const auto& tensor :
         {state.momentum_buffer(), state.exp_avg(), state.exp_avg_sq(), state.step()}) {
      tensors.push_back(tensor.defined() ? tensor.clone() : torch::empty({0}));
    }
  }
  return result;
}

inline bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  const auto bytes = [](const torch::Tensor& t) {
    return t.detach().contiguous().flatten().view(at::kByte);
  };
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         torch::equal(bytes(a), bytes(b));
}

inline void expect_same(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << "tensor " << i;
}

inline void expect_same(const Picture& a, const Picture& b) {
  expect_same(a.tensors, b.tensors);
  EXPECT_EQ(a.states, b.states);
  ASSERT_EQ(a.options.size(), b.options.size());
  for (size_t i = 0; i < a.options.size(); ++i) EXPECT_EQ(a.options[i], b.options[i]);
}

// Keeps warnings to itself as long as it lives.
class CaughtWarnings {
 public:
  std::vector<std::string> messages() const { return handler_.messages; }

 private:
  struct Handler : c10::WarningHandler {
    void process(const c10::Warning& warning) override { messages.push_back(warning.msg()); }
    std::vector<std::string> messages;
  };
  Handler handler_;
  c10::WarningUtils::WarningHandlerGuard guard_{&handler_};
};

// Runs `action`, which must raise Error with a message that contains all `words`.
template <typename Error, typename Action>
void expect_raises(const std::vector<std::string>& words, Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = error.what_without_backtrace();
    for (const auto& word : words) {
      EXPECT_NE(message.find(word), std::string::npos) << "no \"" << word << "\" in: " << message;
    }
    return;
  } catch (const std::exception& error) {
    FAIL() << "another error: " << error.what();
  }
  FAIL() << "no error";
}

}  // namespace erlangen::testing
