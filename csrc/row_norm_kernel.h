// From buckets to the fused row-norm kernels.
#pragma once

#include <optional>
#include <vector>

#include "kernel_step.h"

namespace erlangen {

// The step of a whole bucket by the fused kernel of its device: row_norm, or centered_row_norm.
// Nothing where it does not take the bucket: another rule, polar-first momentum, gradients of
// another type than their parameters, or columns that do not lie in memory as one run or as two.
std::optional<KernelStep> row_norm_kernel_step(const Bucket& bucket,
                                               const std::vector<StepGroup>& groups);

}  // namespace erlangen
