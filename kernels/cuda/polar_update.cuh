// What surrounds the polar iteration in a step, on CUDA. The formulas stand in
// kernels/polar_update.h.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../polar_update.h"

namespace erlangen::kernels::cuda {

// Device memory that the two calls below share, aligned to 16 bytes. It need not be cleared.
int64_t polar_update_scratch_bytes(int64_t count, const PolarUpdateOptions& options);

// Momentum of `count` tensors and their matrices' normalisation into x, whose rows must begin at
// multiples of 16 bytes: three launches (two where x is unscaled), and one for every
// kPolarTensorsPerCopy tensors (polar_update_tiles.h), which brings their table into the scratch
// memory. `tensors` is host memory and is copied before the call returns. Nothing waits for the
// device, so that the call can be captured. A matrix's result depends on the matrix and the
// options; not on what else is in the call, nor on how it is aligned.
cudaError_t polar_update_prepare(const PolarTensor* tensors, int64_t count,
                                 const PolarUpdateOptions& options, void* scratch,
                                 cudaStream_t stream);

// The parameters of the tensors in the scratch memory, from x after the iteration: one launch.
cudaError_t polar_update_finish(int64_t count, const PolarUpdateOptions& options, void* scratch,
                                cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
