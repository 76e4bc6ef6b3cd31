// The triangle below the diagonal, copied above it, for a batch of matrices on CUDA.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace erlangen::kernels::cuda {

// D[c][r] <- D[r][c] for c < r, for `batch` n x n matrices whose elements have 2, 4 or 8 bytes.
// `row` and `matrix` are the strides from row to row and from matrix to matrix, in elements.
cudaError_t mirror_lower(void* data, int64_t batch, int64_t n, int64_t row, int64_t matrix,
                         int element_bytes, cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
