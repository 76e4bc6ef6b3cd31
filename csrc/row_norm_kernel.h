// From buckets to the fused row-norm kernels.
#pragma once

#include <vector>

#include "plan.h"

namespace erlangen {

// Steps a whole bucket with the fused kernel of its device. False, with nothing changed, where the
// kernel does not take it: another rule, polar-first momentum, gradients of another type than their
// parameters, or columns that do not lie in memory as one run or as two.
bool row_norm_kernel_step(const Bucket& bucket, const std::vector<StepGroup>& groups);

}  // namespace erlangen
