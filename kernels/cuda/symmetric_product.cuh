// Batched matrix products whose result is known to be symmetric, on CUDA:
//
//   D = alpha * A * B^T + beta * C        A, B: n x k    C, D: n x n, symmetric
//
// as in X X^T, b A + c A^2 of a symmetric A, and Q Z + a Q of symmetric matrices that commute. Only
// tiles on and below the diagonal are computed, half the work of a full product; each is stored
// twice, as it is and mirrored, so that D is symmetric to the last bit.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "../types.h"

namespace erlangen::kernels::cuda {

// Strides are counted in elements; those between matrices may be 0 for a and b. Products are summed
// in float32 and D is rounded once. Below the diagonal D is what the formula gives, above it is the
// mirror. C must be symmetric to the last bit, because either half may be read; it is not read when
// beta is 0 (it may then be null). D must not overlap A, B or C.
struct SymmetricProduct {
  const void* a;
  const void* b;
  const void* c;
  void* d;
  int64_t batch, n, k;
  int64_t a_row, b_row, c_row, d_row;  // from row to row; a row's elements are contiguous
  int64_t a_batch, b_batch, c_batch, d_batch;
  float alpha, beta;
  DType dtype;  // of all four: bfloat16 or float16
};

// Whether the kernels take these operands: half precision, and every row at a multiple of 16 bytes.
// n and k are free.
inline bool symmetric_product_supports(const SymmetricProduct& p) {
  const auto aligned = [&](const void* data, int64_t row, int64_t batch) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (p.n == 1 || row % 8 == 0) &&
           (p.batch == 1 || batch % 8 == 0);
  };
  return (p.dtype == DType::bfloat16 || p.dtype == DType::float16) &&
         aligned(p.a, p.a_row, p.a_batch) && aligned(p.b, p.b_row, p.b_batch) &&
         aligned(p.d, p.d_row, p.d_batch) && (p.beta == 0.0f || aligned(p.c, p.c_row, p.c_batch));
}

// The same product for `count` matrices from `first` on.
inline SymmetricProduct some_of(SymmetricProduct p, int64_t first, int64_t count) {
  constexpr int64_t kBytes = 2;  // of an element
  p.a = static_cast<const char*>(p.a) + kBytes * first * p.a_batch;
  p.b = static_cast<const char*>(p.b) + kBytes * first * p.b_batch;
  if (p.c) p.c = static_cast<const char*>(p.c) + kBytes * first * p.c_batch;
  p.d = static_cast<char*>(p.d) + kBytes * first * p.d_batch;
  p.batch = count;
  return p;
}

// Bytes that the call needs on the device, at a multiple of 16, so many for each matrix; 0 but for
// sums over long k.
size_t symmetric_product_workspace(const SymmetricProduct& product);

// With mma.sync and cp.async, for sm_80 and everything newer. Nothing is allocated and nothing
// waits for the device. A matrix's result does not depend on the others of its batch nor on the
// number of SMs.
cudaError_t symmetric_product(const SymmetricProduct& product, void* workspace,
                              cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
