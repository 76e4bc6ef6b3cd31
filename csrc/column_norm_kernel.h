// From buckets to the fused column-norm kernels.
#pragma once

#include <vector>

#include "plan.h"

namespace erlangen {

// Steps a whole bucket with the fused kernel of its device. False, with nothing changed, where the
// kernel does not take it: another rule, centering, polar-first momentum, support by gradient,
// stochastic rounding, gradients of another type than their parameters, or units that are neither
// columns nor pairs of columns in memory.
bool column_norm_kernel_step(const Bucket& bucket, const std::vector<StepGroup>& groups);

}  // namespace erlangen
