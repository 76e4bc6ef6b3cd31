// The polar iteration of small matrices on CUDA: all steps of all matrices in one launch.
//
//   X <- p_n(... p_1(X)),  p(X) = (a I + b X X^T + c (X X^T)^2) X        X: k x l, k <= 128
//
// in the Gram form of csrc/polar_iteration.cpp: a segment of one or two steps works on R = X X^T
// alone and ends with X <- Q X. The heads of attention and the routers of experts have this size;
// product by product, their time would be that of the launches.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../types.h"

namespace erlangen::kernels::cuda {

constexpr int64_t kPolarIterationMaxRows = 128;
constexpr int kPolarIterationMaxSteps = 64;

// A batch of matrices, each overwritten with its result. Strides are counted in elements; a row's
// elements are contiguous, and what lies between the rows is neither read nor written.
struct PolarIteration {
  void* x;
  int64_t batch, k, l;
  int64_t row, matrix;  // from row to row, from matrix to matrix
  DType dtype;          // bfloat16 or float16
  int steps;
  // Steps of a segment: 2, but 1 of the first, or 1 for the standard form, whose Gram matrix is
  // always new.
  int period;
  float a[kPolarIterationMaxSteps], b[kPolarIterationMaxSteps], c[kPolarIterationMaxSteps];
};

// Whether the kernel takes these: half precision, few enough rows and steps, and every row at a
// multiple of 16 bytes. k and l are free otherwise.
inline bool polar_iteration_supports(const PolarIteration& p) {
  return (p.dtype == DType::bfloat16 || p.dtype == DType::float16) &&
         p.k <= kPolarIterationMaxRows && p.steps <= kPolarIterationMaxSteps &&
         (p.period == 1 || p.period == 2) && reinterpret_cast<uintptr_t>(p.x) % 16 == 0 &&
         (p.k <= 1 || p.row % 8 == 0) && (p.batch <= 1 || p.matrix % 8 == 0);
}

// With mma.sync and cp.async, for sm_80 and everything newer. Nothing waits for the device. A
// matrix's result depends neither on the others of its batch nor on the device. The zero matrix
// stays zero; one NaN makes the whole matrix NaN.
cudaError_t polar_iteration(const PolarIteration& iteration, cudaStream_t stream);

}  // namespace erlangen::kernels::cuda
