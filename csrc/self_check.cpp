#include "self_check.h"

#include "device.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>

namespace erlangen {

namespace {

const KernelCase& case_of(Kernel kernel) {
  const auto& cases = kernel_cases();
  return *std::find_if(cases.begin(), cases.end(),
                       [&](const KernelCase& c) { return c.kernel == kernel; });
}

// What an environment variable says that may be 0 or 1.
std::optional<bool> switched(const char* name) {
  const char* const value = std::getenv(name);
  if (!value || !*value) return {};
  const std::string text = value;
  TORCH_CHECK_VALUE(text == "0" || text == "1", "the environment variable ", name, " is ", text,
                    "; allowed: 0, 1");
  return text == "1";
}

std::string dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return "float32";
    case at::kDouble: return "float64";
    case at::kHalf: return "float16";
    case at::kBFloat16: return "bfloat16";
    default: return c10::toString(dtype);
  }
}

// The first line: backtraces and hints follow.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// What is wrong with the kernel, in words; empty where nothing is.
std::string failure_of(const KernelUse& use) {
  const KernelCase& c = case_of(use.kernel);
  const at::NoGradGuard no_grad;
  const c10::InferenceMode no_inference_mode(false);
  // The caller's modes are about the caller's tensors: autocast, and Python's dispatch modes.
  const c10::impl::ExcludeDispatchKeyGuard no_modes(c10::autocast_dispatch_keyset | c10::python_ks);
  const std::vector<Expected> expected = c.reference(use);
  try {
    const c10::DeviceGuard guard(use.device);
    std::vector<at::Tensor> outputs = c.run(use);
    for (at::Tensor& output : outputs) output = output.cpu();  // waits
    return difference(outputs, expected);
  } catch (const c10::OutOfMemoryError&) {
    throw;  // says nothing of the kernel
  } catch (const c10::Error& error) {
    return "it raised: " + first_line(error.what_without_backtrace());
  }
}

std::string message(const KernelUse& use, const std::string& failure) {
  return c10::str("erlangen: the kernel ", use.name(), " has failed its check on ", use.device,
                  " and is not used; plain ATen operations take its place. What failed: ", failure,
                  ". Please report this with what `python -m erlangen` prints. "
                  "ERLANGEN_SELF_CHECK=1 makes it an error, 0 leaves the check out.");
}

// What failed for each kernel that was checked; "" for those that passed.
using Key = std::tuple<Kernel, c10::DeviceType, c10::DeviceIndex, Dtypes>;
std::mutex mutex;
std::map<Key, std::pair<KernelUse, std::string>>& outcomes() {
  static std::map<Key, std::pair<KernelUse, std::string>> result;
  return result;
}

}  // namespace

std::string KernelUse::name() const {
  std::string result = case_of(kernel).name;
  result += " of " + dtype_name(dtypes[0]);
  if (dtypes.size() > 1) result += " parameters with " + dtype_name(dtypes[1]) + " momentum";
  if (dtypes.size() > 2) result += " and " + dtype_name(dtypes[2]) + " products";
  return result;
}

bool proven(const KernelUse& use) {
  if (!proves_kernels(use.device.type())) return true;
  const std::optional<bool> strict = switched("ERLANGEN_SELF_CHECK");
  if (strict == false) return true;
  std::string failure;
  bool first = false;
  {
    // Others wait for the outcome: two checks at a time would gain nothing.
    const std::lock_guard lock(mutex);
    const Key key = {use.kernel, use.device.type(), use.device.index(), use.dtypes};
    auto found = outcomes().find(key);
    first = found == outcomes().end();
    if (first) {
      TORCH_CHECK_VALUE(!is_capturing(use.device), "step: the kernel ", use.name(),
                        " has not been checked on ", use.device,
                        ", which it is at its first use, and the step is being captured in a CUDA "
                        "graph; take one step before the capture");
      found = outcomes().emplace(key, std::pair(use, failure_of(use))).first;
    }
    failure = found->second.second;
  }
  if (failure.empty()) return true;
  TORCH_CHECK(strict != true, message(use, failure));
  if (first) TORCH_WARN(message(use, failure));
  return false;
}

bool takes_wgmma() {
  static const bool asked = switched("ERLANGEN_WGMMA").value_or(false);
  return asked;
}

std::string difference(const std::vector<at::Tensor>& outputs,
                       const std::vector<Expected>& expected) {
  TORCH_INTERNAL_ASSERT(outputs.size() == expected.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& [what, value, tolerance] = expected[i];
    const at::Tensor output = outputs[i].to(at::kDouble);
    TORCH_INTERNAL_ASSERT(output.sizes() == value.sizes() && value.sizes() == tolerance.sizes());
    // Not "is more than": a NaN is no more than anything.
    const at::Tensor wrong = (output - value).abs().le(tolerance).logical_not().flatten();
    const auto count = wrong.sum().item<int64_t>();
    if (count == 0) continue;
    int64_t place = wrong.to(at::kByte).argmax().item<int64_t>();
    const auto number = [&](const at::Tensor& t) { return t.flatten()[place].item<double>(); };
    std::ostringstream text;
    text.precision(9);
    text << what << ": " << count << " of " << value.numel() << " elements, the first, number "
         << place << ", is " << number(output) << " and should be within " << number(tolerance)
         << " of " << number(value);
    return text.str();
  }
  return "";
}

std::vector<KernelOutcome> check_kernels(at::Device device) {
  std::vector<KernelOutcome> result;
  for (const KernelCase& c : kernel_cases()) {
    if (!c.is_built_for(device)) continue;
    for (const Dtypes& dtypes : c.dtypes) {
      const KernelUse use = {c.kernel, device, dtypes};
      result.push_back({use.name(), failure_of(use)});
    }
  }
  return result;
}

std::vector<KernelOutcome> remembered_outcomes() {
  const std::lock_guard lock(mutex);
  std::vector<KernelOutcome> result;
  for (const auto& [key, outcome] : outcomes()) {
    result.push_back({outcome.first.name(), outcome.second});
  }
  return result;
}

}  // namespace erlangen
