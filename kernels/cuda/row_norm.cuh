// The row-norm step on CUDA. The formula stands in kernels/row_norm.h.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../row_norm.h"

namespace erlangen::kernels::cuda {

// Steps every row of `count` tensors, which share columns, types and options; one launch for as
// many of them as fit into its arguments, 19 (aligned and unaligned ones apart). `tensors` is host
// memory and is copied before the call returns. Nothing waits for the device, so that the call can
// be captured. A row's result depends on the row, the options and whether its addresses allow
// 16-byte access; not on what else is in the call.
cudaError_t row_norm_step(const RowNormTensor* tensors, int64_t count,
                          const RowNormOptions& options, cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
