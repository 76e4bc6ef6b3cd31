// From buckets to the fused row-norm kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/types.h"
#include "plan.h"

namespace erlangen {

// Steps a whole bucket with the fused kernel of its device. False, with nothing changed, where the
// kernel does not take it: another rule, polar-first momentum, gradients of another type than their
// parameters, or columns that do not lie in memory as one run or as two.
bool row_norm_kernel_step(const Bucket& bucket, const std::vector<StepGroup>& groups);

// What the ways to other kernels share: the storage type, whether this build has kernels for the
// device (if it should and has not, it says so once), and the count that kernel_count() gives.
kernels::DType kernel_dtype(const at::Tensor& tensor);
bool has_kernels(at::Device device);
void count_kernel_steps(int64_t steps);

}  // namespace erlangen
