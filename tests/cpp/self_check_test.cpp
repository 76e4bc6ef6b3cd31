// The cases that kernels are checked by, on the kernels for CPUs: all pass, and no small fault gets
// by. What a step makes of a kernel that fails is tested in tests/python/test_self_check.py.

#include "self_check.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <limits>

#include "device.h"
#include "symmetric_product.h"

namespace erlangen {

namespace {

// A Hopper that is not there: no kernel can be launched on it. This program answers for it in place
// of the library, which the dynamic linker allows.
const c10::Device kAbsent(c10::kCUDA, 77);

template <typename Function>
Function* next(Function* own) {
  Dl_info info;
  dladdr(reinterpret_cast<void*>(own), &info);
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, info.dli_sname));
}

}  // namespace

int cuda_capability(c10::Device device) {
  return device == kAbsent ? 90 : next(&cuda_capability)(device);
}

bool is_capturing(c10::Device device) {
  return device == kAbsent ? false : next(&is_capturing)(device);
}

namespace {

template <typename Visitor>
void each_case(Visitor&& visitor) {
  for (const KernelCase& c : kernel_cases()) {
    for (const Dtypes& dtypes : c.dtypes) {
      if (c.is_built_for(at::kCPU)) visitor(c, KernelUse{c.kernel, at::kCPU, dtypes});
    }
  }
}

TEST(SelfCheck, KernelsForCpusPass) {
  int64_t count = 0;
  each_case([&](const KernelCase& c, const KernelUse& use) {
    EXPECT_EQ(difference(c.run(use), c.reference(use)), "") << use.name();
    ++count;
  });
  EXPECT_EQ(count, 3 * 7 + 22 + 2 + 2 + 4);
}

// An element or a tensor that is off by a fifth, and a NaN, in any output.
TEST(SelfCheck, FaultsAreSeenInEveryOutput) {
  each_case([&](const KernelCase& c, const KernelUse& use) {
    const std::vector<Expected> expected = c.reference(use);
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto with = [&](const at::Tensor& output) {
        return difference({output}, {expected[i]});
      };
      const at::Tensor& value = expected[i].value;
      ASSERT_EQ(with(value), "");
      EXPECT_NE(with(value * 1.2), "") << use.name() << ", " << expected[i].what;
      for (const int64_t place : {int64_t{0}, value.numel() / 2, value.numel() - 1}) {
        for (const double fault : {0.2, std::numeric_limits<double>::quiet_NaN()}) {
          const at::Tensor output = value.clone();
          at::Tensor element = output.view({-1})[place];
          element.add_((element.abs() + 1) * fault);
          const std::string text = with(output);
          const std::string words = expected[i].what + ": 1 of " + std::to_string(value.numel()) +
                                    " elements, the first, number " + std::to_string(place);
          EXPECT_EQ(text.substr(0, words.size()), words) << use.name();
        }
      }
    }
  });
}

// What the products' cases expect is what every type holds.
TEST(SelfCheck, ExactCasesAreExact) {
  each_case([&](const KernelCase& c, const KernelUse& use) {
    if (use.dtypes.size() > 1) return;
    for (const Expected& e : c.reference(use)) {
      EXPECT_TRUE(at::equal(e.value, e.value.to(use.dtypes[0]).to(at::kDouble)))
          << use.name() << ", " << e.what;
      EXPECT_EQ(e.tolerance.abs().max().item<double>(), 0);
    }
  });
}

TEST(SelfCheck, NoGeneratorIsTouched) {
  torch::manual_seed(3);
  const at::Tensor expected = at::rand({4});
  torch::manual_seed(3);
  each_case([](const KernelCase& c, const KernelUse& use) { c.run(use), c.reference(use); });
  EXPECT_TRUE(at::equal(at::rand({4}), expected));
}

// wgmma's kernel is not even tried unless somebody asks; mma.sync's fails here, and so does the
// mirror, for which ATen has other operations.
TEST(SelfCheck, ProductsFallBackToAten) {
  const auto names = [] {
    std::vector<std::string> result;
    for (const auto& [kernel, failure] : remembered_outcomes()) {
      EXPECT_NE(failure, "") << kernel;
      result.push_back(kernel);
    }
    std::sort(result.begin(), result.end());
    return result;
  };
  for (int i = 0; i < 2; ++i) {
    const auto small = proven_symmetric_route(kAbsent, {at::kHalf, 512, 512, true, true});
    const auto large = proven_symmetric_route(kAbsent, {at::kHalf, 4096, 4096, true, true});
    EXPECT_EQ(small, SymmetricRoute::plain);
    EXPECT_EQ(large, SymmetricRoute::strips);
    const std::vector<std::string> failed = {"mirror_lower of float16",
                                             "symmetric_product of float16"};
    EXPECT_EQ(names(), failed);
  }
}

}  // namespace
}  // namespace erlangen
