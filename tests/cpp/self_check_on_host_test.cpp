// The cases that kernels are checked by on a GPU, on the CUDA kernels themselves, run on the CPU
// (cuda_on_host.h): none that is right fails its check. This program stands between liberlangen and
// its kernels for CPUs, which the dynamic linker allows: where a step calls one of these, the whole
// of a parameter goes to the kernel for CUDA, which takes the same arguments.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "cuda_on_host.h"
#include "kernels/cpu/centered_row_norm.h"
#include "kernels/cpu/column_norm.h"
#include "kernels/cpu/polar_update.h"
#include "kernels/cpu/row_norm.h"
#include "kernels/cuda/centered_row_norm.cuh"
#include "kernels/cuda/column_norm.cuh"
#include "kernels/cuda/mirror_lower.cuh"
#include "kernels/cuda/polar_iteration.cuh"
#include "kernels/cuda/polar_update.cuh"
#include "kernels/cuda/row_norm.cuh"
#include "kernels/cuda/symmetric_product.cuh"
#include "polar_iteration.h"
#include "self_check.h"
#include "symmetric_product.h"

namespace {

int64_t calls = 0;

void expect_success(cudaError_t error) {
  EXPECT_EQ(error, cudaSuccess) << cuda_on_host::take_failure();
  ++calls;
}

// Memory full of NaN, aligned as CUDA's allocators align it.
class Scratch {
 public:
  explicit Scratch(size_t bytes = 0) : memory_(bytes / sizeof(double) + 2 * kUnit) {
    std::memset(memory_.data(), 0xff, memory_.size() * sizeof(double));
  }
  void* data() {
    void* start = memory_.data();
    size_t space = memory_.size() * sizeof(double);
    return std::align(kUnit * sizeof(double), space - kUnit * sizeof(double), start, space);
  }

 private:
  static constexpr size_t kUnit = 32;
  std::vector<double> memory_;
};

std::map<const void*, Scratch> polar_scratch;  // of parameters between the two halves of a step

}  // namespace

namespace erlangen {

namespace kernels::cpu {

void row_norm_step(const RowNormTensor& tensor, const RowNormOptions& options, int64_t begin,
                   int64_t end) {
  ASSERT_TRUE(begin == 0 && end == tensor.rows);
  expect_success(cuda::row_norm_step(&tensor, 1, options, nullptr));
}

// Of several passes the first does it all.
void centered_row_norm_sums(const RowNormTensor& tensor, const RowNormOptions& options, void*,
                            int64_t begin, int64_t end) {
  ASSERT_TRUE(begin == 0 && end == centered_chunks(tensor));
  Scratch scratch(centered_scratch_bytes(tensor, options));
  expect_success(cuda::centered_row_norm_step(&tensor, 1, options, scratch.data(), nullptr));
}
void centered_row_norm_mean(const RowNormTensor&, const RowNormOptions&, void*, bool, int64_t,
                            int64_t) {}
void centered_row_norm_units(const RowNormTensor&, const RowNormOptions&, void*, int64_t, int64_t) {
}
void centered_row_norm_update(const RowNormTensor&, const RowNormOptions&, void*, int64_t,
                              int64_t) {}

void column_norm_sum(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                     const ColumnNormBlock& block, void*) {
  if (block.matrix > 0 || block.row_begin > 0 || block.col_begin > 0) return;
  Scratch scratch(cuda::column_norm_scratch_bytes(&tensor, 1, options));
  expect_success(cuda::column_norm_step(&tensor, 1, options, scratch.data(), nullptr));
}
void column_norm_lengths(const ColumnNormTensor&, const ColumnNormOptions&, const ColumnNormBlock&,
                         void*) {}
void column_norm_update(const ColumnNormTensor&, const ColumnNormOptions&, const ColumnNormBlock&,
                        const void*) {}

int32_t polar_update_momentum(const PolarTensor& tensor, const PolarUpdateOptions& options,
                              const PolarBlock& block) {
  if (block.matrix > 0 || block.row > 0 || block.col > 0) return 0;
  Scratch& scratch = polar_scratch[tensor.param];
  scratch = Scratch(cuda::polar_update_scratch_bytes(1, options));
  expect_success(cuda::polar_update_prepare(&tensor, 1, options, scratch.data(), nullptr));
  return 0;
}
double polar_update_cast(const PolarTensor&, const PolarUpdateOptions&, const PolarBlock&,
                         int32_t) {
  return 0;
}
void polar_update_normalise(const PolarTensor&, const PolarUpdateOptions&, int64_t, int64_t,
                            int64_t, int32_t, double) {}
void polar_update_parameter(const PolarTensor& tensor, const PolarUpdateOptions& options,
                            const PolarBlock& block) {
  if (block.matrix > 0 || block.row > 0 || block.col > 0) return;
  Scratch& scratch = polar_scratch[tensor.param];
  expect_success(cuda::polar_update_finish(1, options, scratch.data(), nullptr));
}

}  // namespace kernels::cpu

namespace {

kernels::DType half_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kHalf ? kernels::DType::float16 : kernels::DType::bfloat16;
}

}  // namespace

// As on a GPU: rows at multiples of 16 bytes.
at::Tensor empty_matrices(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const auto unit = static_cast<int64_t>(16 / options.dtype().itemsize());
  const int64_t cols = (sizes[2] + unit - 1) / unit * unit;
  return at::empty({sizes[0], sizes[1], cols}, options).narrow(2, 0, sizes[2]);
}

void polar_iteration_by_kernel(const at::Tensor& x, const PolynomialSteps& steps, bool gram) {
  kernels::cuda::PolarIteration p = {};
  p.x = x.data_ptr();
  p.batch = x.size(0), p.k = x.size(1), p.l = x.size(2);
  p.row = x.stride(1), p.matrix = x.stride(0);
  p.dtype = half_dtype(x);
  p.steps = static_cast<int>(steps.size());
  p.period = gram && x.scalar_type() == at::kHalf ? 2 : 1;
  for (size_t i = 0; i < steps.size(); ++i) {
    p.a[i] = static_cast<float>(steps[i][0]);
    p.b[i] = static_cast<float>(steps[i][1]);
    p.c[i] = static_cast<float>(steps[i][2]);
  }
  expect_success(kernels::cuda::polar_iteration(p, nullptr));
}

void symmetric_product_by(SymmetricRoute, const at::Tensor& out, const at::Tensor& c,
                          const at::Tensor& a, const at::Tensor& b, double beta, double alpha) {
  const bool has_c = c.defined();
  const kernels::cuda::SymmetricProduct p = {.a = a.data_ptr(),
                                             .b = b.data_ptr(),
                                             .c = has_c ? c.data_ptr() : nullptr,
                                             .d = out.data_ptr(),
                                             .batch = out.size(0),
                                             .n = out.size(1),
                                             .k = a.size(2),
                                             .a_row = a.stride(1),
                                             .b_row = b.stride(1),
                                             .c_row = has_c ? c.stride(1) : 0,
                                             .d_row = out.stride(1),
                                             .a_batch = a.stride(0),
                                             .b_batch = b.stride(0),
                                             .c_batch = has_c ? c.stride(0) : 0,
                                             .d_batch = out.stride(0),
                                             .alpha = static_cast<float>(alpha),
                                             .beta = static_cast<float>(beta),
                                             .dtype = half_dtype(out)};
  Scratch scratch(kernels::cuda::symmetric_product_workspace(p));
  expect_success(kernels::cuda::symmetric_product(p, scratch.data(), nullptr));
}

void mirror_by_kernel(const at::Tensor& out) {
  expect_success(kernels::cuda::mirror_lower(out.data_ptr(), out.size(0), out.size(1),
                                             out.stride(1), out.stride(0),
                                             static_cast<int>(out.element_size()), nullptr));
}

namespace {

class SelfCheckOnHost : public testing::TestWithParam<Kernel> {};

// One thread, so that a call has a whole parameter. Of kernels that take seconds, one type or few.
TEST_P(SelfCheckOnHost, KernelsForCudaPass) {
  at::set_num_threads(1);
  cuda_on_host::device = {};
  for (const KernelCase& c : kernel_cases()) {
    if (c.kernel != GetParam()) continue;
    int64_t checked = 0;
    for (const Dtypes& dtypes : c.dtypes) {
      const bool slow = c.kernel == Kernel::centered_row_norm || dtypes.size() != 2;
      if (slow && c.kernel != Kernel::mirror_lower && checked++ % 8 > 0) continue;
      const KernelUse use = {c.kernel, at::kCPU, dtypes};
      calls = 0;
      EXPECT_EQ(difference(c.run(use), c.reference(use)), "") << use.name();
      EXPECT_GT(calls, 2) << use.name();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, SelfCheckOnHost,
                         testing::Values(Kernel::row_norm, Kernel::centered_row_norm,
                                         Kernel::column_norm, Kernel::polar_update,
                                         Kernel::polar_iteration, Kernel::symmetric_product,
                                         Kernel::mirror_lower));

}  // namespace
}  // namespace erlangen
