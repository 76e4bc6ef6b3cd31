// The centered row-norm step on CUDA. The formula stands in kernels/centered_row_norm.h.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../centered_row_norm.h"

namespace erlangen::kernels::cuda {

// Steps every matrix of `count` tensors, which share columns, types and options; five launches for
// as many of them as fit into a launch's arguments, 17 (aligned and unaligned ones apart).
// `tensors` is host memory and is copied before the call returns; `scratch` is device memory,
// aligned to 128 bytes, the sum of the tensors' centered_scratch_bytes long. Nothing waits for the
// device, so that the call can be captured. A matrix's result depends on the matrix, the options
// and whether its addresses allow 16-byte access; not on what else is in the call.
cudaError_t centered_row_norm_step(const RowNormTensor* tensors, int64_t count,
                                   const RowNormOptions& options, void* scratch,
                                   cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
