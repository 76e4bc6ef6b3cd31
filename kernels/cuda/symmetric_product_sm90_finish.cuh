// What is left of a symmetric product when the wgmma kernel is through. Knows nothing of CUTLASS.

#pragma once

#include "symmetric_product.cuh"
#include "symmetric_product_sm90_tiles.h"

namespace erlangen::kernels::cuda {

// Where k was cut into parts: adds their sums in order and stores them on both sides of the
// diagonal. Else, where the factors differ: copies the lower half of the squares on the diagonal to
// the upper one. Else nothing.
cudaError_t symmetric_product_sm90_finish(const SymmetricProduct& product,
                                          const sm90::Schedule& schedule, cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
