// From buckets to the fused column-norm kernels.
#pragma once

#include <optional>
#include <vector>

#include "kernel_step.h"

namespace erlangen {

// The step of a whole bucket by the fused kernel of its device. Nothing where it does not take the
// bucket: another rule, centering, polar-first momentum, support by gradient, stochastic rounding,
// gradients of another type than their parameters, or units that are neither columns nor pairs of
// columns in memory.
std::optional<KernelStep> column_norm_kernel_step(const Bucket& bucket,
                                                  const std::vector<StepGroup>& groups);

}  // namespace erlangen
