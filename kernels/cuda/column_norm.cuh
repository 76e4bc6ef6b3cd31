// The column-norm step on CUDA. The formula stands in kernels/column_norm.h.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../column_norm.h"

namespace erlangen::kernels::cuda {

// Device memory that column_norm_step needs beside the tensors, aligned to 16 bytes. It need not be
// cleared.
int64_t column_norm_scratch_bytes(const ColumnNormTensor* tensors, int64_t count,
                                  const ColumnNormOptions& options);

// Steps `count` tensors, which share sizes, types and options, in three launches for every 32 of
// them (aligned and unaligned ones apart). `tensors` is host memory and is copied before the call
// returns. Nothing waits for the device, so that the call can be captured. A unit's result depends
// on the unit, the options and whether its tensor allows 16-byte access; not on what else is in the
// call.
cudaError_t column_norm_step(const ColumnNormTensor* tensors, int64_t count,
                             const ColumnNormOptions& options, void* scratch, cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
