// The cases that kernels are checked by, in parts: steps of buckets, and products. All numbers come
// from a formula, so that no generator is touched.
#pragma once

#include <ATen/ops/empty.h>

#include "self_check.h"

namespace erlangen {

// Of row_norm, centered_row_norm, column_norm and polar_update: a step of a few parameters, with
// every option that the kernel reads; the iteration between polar_update's halves is left out.
std::vector<at::Tensor> run_steps(const KernelUse& use);
std::vector<Expected> expected_steps(const KernelUse& use);

// Of the products: small integers and powers of two, which no type rounds, so that the tolerance is
// zero.
std::vector<at::Tensor> run_polar_iterations(const KernelUse& use);
std::vector<Expected> expected_polar_iterations(const KernelUse& use);
std::vector<at::Tensor> run_symmetric_products(const KernelUse& use);
std::vector<Expected> expected_symmetric_products(const KernelUse& use);
std::vector<at::Tensor> run_mirrors(const KernelUse& use);
std::vector<Expected> expected_mirrors(const KernelUse& use);

// "parameter [5, 37] of column_norm"
std::string describe(const std::string& what, const at::Tensor& tensor);

// As many whole numbers from `sizes` on the CPU, in float64, as f(index) gives.
template <typename F>
at::Tensor numbers(at::IntArrayRef sizes, F&& f) {
  const at::Tensor result = at::empty(sizes, at::TensorOptions(at::kDouble));
  double* const data = result.mutable_data_ptr<double>();
  for (int64_t i = 0; i < result.numel(); ++i) data[i] = f(i);
  return result;
}

}  // namespace erlangen
