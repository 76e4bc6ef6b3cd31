// From buckets to the fused kernels around the polar iteration.
#pragma once

#include <optional>
#include <vector>

#include "kernel_step.h"

namespace erlangen {

// The step of a whole bucket: the kernels of its device take momentum and normalisation, then the
// parameters' update, all logical matrices of a section at once; between the two the iteration of
// polar.h, or the operations of rules.h where a rule has more (hybrid, centering, an alpha,
// ns_method "exact"). Nothing where they do not take it: row_norm and
// column_norm, polar-first momentum, support "gradient", gradients of another type than their
// parameters, or rows that the kernels cannot say (Rows, kernel_step.h). A matrix's result depends
// on its batch as polar_iteration.h says; on CUDA the operations of rules.h promise no more.
std::optional<KernelStep> polar_kernel_step(const Bucket& bucket,
                                            const std::vector<StepGroup>& groups);

}  // namespace erlangen
