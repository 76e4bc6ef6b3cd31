#include "self_check_cases.h"

#include "device.h"
#include "symmetric_product.h"

namespace erlangen {

namespace {

#ifdef ERLANGEN_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

bool everywhere(at::Device device) {
  return device.is_cpu() || (kHasCuda && cuda_capability(device) >= 80);
}

bool on_hopper(at::Device device) {
  return kHasWgmma && takes_wgmma() && cuda_capability(device) == 90;
}

const std::vector<Dtypes>& steps() {
  static const std::vector<Dtypes> all = {
      {at::kFloat, at::kFloat},       {at::kFloat, at::kBFloat16}, {at::kBFloat16, at::kFloat},
      {at::kBFloat16, at::kBFloat16}, {at::kHalf, at::kFloat},     {at::kHalf, at::kBFloat16},
      {at::kDouble, at::kDouble}};
  return all;
}

std::vector<Dtypes> steps_with_products() {
  std::vector<Dtypes> all;
  for (const Dtypes& step : steps()) {
    for (const at::ScalarType product : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
      if (product == at::kDouble && step[0] != at::kDouble) continue;
      all.push_back({step[0], step[1], product});
    }
  }
  return all;
}

}  // namespace

const std::vector<KernelCase>& kernel_cases() {
  using enum Kernel;
  static const std::vector<Dtypes> half = {{at::kHalf}, {at::kBFloat16}};
  static const std::vector<Dtypes> all = {
      {at::kFloat}, {at::kDouble}, {at::kHalf}, {at::kBFloat16}};
  static const std::vector<KernelCase> cases = {
      {row_norm, "row_norm", steps(), everywhere, run_steps, expected_steps},
      {centered_row_norm, "centered_row_norm", steps(), everywhere, run_steps, expected_steps},
      {column_norm, "column_norm", steps(), everywhere, run_steps, expected_steps},
      {polar_update, "polar_update", steps_with_products(), everywhere, run_steps, expected_steps},
      {polar_iteration, "polar_iteration", half, everywhere, run_polar_iterations,
       expected_polar_iterations},
      {symmetric_product, "symmetric_product", half, everywhere, run_symmetric_products,
       expected_symmetric_products},
      {symmetric_product_sm90, "symmetric_product_sm90", half, on_hopper, run_symmetric_products,
       expected_symmetric_products},
      {mirror_lower, "mirror_lower", all, everywhere, run_mirrors, expected_mirrors}};
  return cases;
}

}  // namespace erlangen
