// Symmetric products on Hopper, with TMA and wgmma. The arguments stand in symmetric_product.cuh,
// the division of work in symmetric_product_sm90_tiles.h. Present in builds for sm_90a that found
// CUTLASS's headers: ERLANGEN_SM90 is defined then.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "symmetric_product.cuh"
#include "symmetric_product_sm90_tiles.h"

namespace erlangen::kernels::cuda {

// Whether the rows of both factors are the same memory: A = B, a Gram matrix or a square. Not by
// the size of the batch: slices of it are cut up as the whole.
inline bool symmetric_product_is_gram(const SymmetricProduct& p) {
  return p.a == p.b && p.a_row == p.b_row && p.a_batch == p.b_batch;
}

// Whether the kernel takes these operands. n and k are free, from 1. TMA wants base addresses and
// all strides that are used at multiples of 16 bytes, strides below 2^40 bytes, none of them 0.
inline bool symmetric_product_sm90_supports(const SymmetricProduct& p) {
  const auto strides = [&](int64_t row, int64_t matrix) {
    const auto fits = [](int64_t stride) {
      return stride > 0 && stride % 8 == 0 && stride < (int64_t{1} << 39);
    };
    return fits(row) && (p.batch == 1 || fits(matrix));
  };
  if (p.batch < 1 || p.n < 1 || p.k < 1) return false;
  if (p.batch >= 1 << 24 || p.n >= 1 << 22 || p.k >= int64_t{1} << 31) return false;
  if (!symmetric_product_supports(p) || !strides(p.a_row, p.a_batch) ||
      !strides(p.b_row, p.b_batch) || !strides(p.d_row, p.d_batch) ||
      (p.beta != 0.0f && !strides(p.c_row, p.c_batch))) {
    return false;
  }
  const sm90::Plan plan = sm90::plan_for(p.n, p.k, symmetric_product_is_gram(p));
  const sm90::Triangle triangle = sm90::triangle_of(p.n, plan.width, symmetric_product_is_gram(p));
  return p.batch * plan.cut.parts * sm90::pairs_of(triangle) < int64_t{1} << 30;
}

// Bytes that the call needs on the device, at a multiple of 16, so many for each matrix; 0 but for
// sums over long k.
size_t symmetric_product_sm90_workspace(const SymmetricProduct& product);

// For devices of compute capability 9.0; others give cudaErrorNoKernelImageForDevice or the like.
// Nothing is allocated and nothing waits for the device, so that the call can be captured. A
// matrix's result does not depend on the others of its batch nor on the number of SMs. Operands
// that symmetric_product_sm90_supports refuses, or a D that overlaps A, B or C, are
// cudaErrorInvalidValue.
//
// D is symmetric to the last bit if C is: where A = B by the order of the sums, which is that of k
// for every element; else because the diagonal squares are mirrored by a second kernel. C must be
// symmetric to the last bit: its upper half is read in places.
cudaError_t symmetric_product_sm90(const SymmetricProduct& product, void* workspace,
                                   cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
