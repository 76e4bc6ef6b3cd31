// What is left of a symmetric product when the wgmma kernel is through.

#include "symmetric_product_sm90_finish.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>

#include "launch.cuh"

namespace erlangen::kernels::cuda {
namespace sm90 {
namespace {

// A block adds a quarter of a tile, 32 columns; matrices of the batch lie along z.
constexpr int kQuarters = 4;

template <typename Element>
__global__ void __launch_bounds__(kMmaThreads)
    add_parts(const __grid_constant__ SymmetricProduct p,
              const __grid_constant__ Schedule schedule) {
  const int32_t index = static_cast<int32_t>(blockIdx.x / 2);
  const int rank = static_cast<int>(blockIdx.x % 2);
  const int32_t matrix = static_cast<int32_t>(blockIdx.z);
  const Pair pair = pair_at(schedule.triangle, index);
  const int32_t row = row_of(pair, rank);
  if (row >= schedule.triangle.rows) return;
  const Element* c = static_cast<const Element*>(p.c);
  if (p.beta != 0.0f) c += matrix * p.c_batch;
  Element* d = static_cast<Element*>(p.d) + matrix * p.d_batch;

  constexpr int kValues = kPartialFloats / kMmaThreads / kQuarters;
  const int first = static_cast<int>(blockIdx.y) * kValues;
  const int thread = static_cast<int>(threadIdx.x);
  float sums[kValues] = {};
  for (int part = 0; part < schedule.parts; ++part) {
    const float* from = schedule.partials +
                        partial_offset(schedule.parts, schedule.pairs, matrix, part, index, rank) +
                        first * kMmaThreads + thread;
#pragma unroll
    for (int v = 0; v < kValues; ++v) sums[v] += from[v * kMmaThreads];
  }
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    const int64_t i = static_cast<int64_t>(row) * kBlock + accumulator_row(thread, first + v);
    const int64_t j =
        static_cast<int64_t>(pair.column) * kBlock + accumulator_column(thread, first + v);
    if (i >= p.n || j >= p.n || (row == pair.column && i < j)) continue;
    float x = p.alpha * sums[v];
    if (p.beta != 0.0f) x = fmaf(p.beta, static_cast<float>(c[i * p.c_row + j]), x);
    const Element y = static_cast<Element>(x);
    d[i * p.d_row + j] = y;
    d[j * p.d_row + i] = y;
  }
}

// A block takes 32 rows of a square.
constexpr int kPatch = 32;

template <typename Element>
__global__ void __launch_bounds__(kPatch* kPatch)
    mirror_diagonal(const __grid_constant__ SymmetricProduct p, int square) {
  __shared__ Element patch[kPatch][kPatch + 2];
  Element* d = static_cast<Element*>(p.d) + blockIdx.z * p.d_batch;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t corner = static_cast<int64_t>(blockIdx.x) * square;
  const int64_t rows = corner + static_cast<int64_t>(blockIdx.y) * kPatch;
  for (int64_t columns = corner; columns <= rows; columns += kPatch) {
    // Of the patch on the diagonal too only what lies below it: the rest is being written.
    if (rows + y < p.n && columns + x <= rows + y) {
      patch[y][x] = d[(rows + y) * p.d_row + columns + x];
    }
    __syncthreads();
    const int64_t i = rows + x, j = columns + y;
    if (i < p.n && j < i) d[j * p.d_row + i] = patch[x][y];
    __syncthreads();
  }
}

template <typename Element>
cudaError_t finish(const SymmetricProduct& p, const Schedule& schedule, cudaStream_t stream) {
  constexpr int64_t kMostMatrices = 65535;  // where a grid's third dimension ends
  for (int64_t first = 0; first < p.batch; first += kMostMatrices) {
    SymmetricProduct some = p;
    some.d = static_cast<Element*>(p.d) + first * p.d_batch;
    if (p.beta != 0.0f) some.c = static_cast<const Element*>(p.c) + first * p.c_batch;
    const unsigned matrices = static_cast<unsigned>(std::min(p.batch - first, kMostMatrices));
    cudaError_t error = cudaSuccess;
    if (schedule.parts > 1) {
      Schedule rest = schedule;
      rest.partials +=
          partial_offset(schedule.parts, schedule.pairs, static_cast<int32_t>(first), 0, 0, 0);
      error = launch(dim3(2 * schedule.pairs, kQuarters, matrices), dim3(kMmaThreads), 0, stream,
                     add_parts<Element>, some, rest);
    } else if (!schedule.whole_squares) {
      const int square = kBlock * schedule.triangle.width;
      error = launch(dim3(schedule.triangle.columns, square / kPatch, matrices),
                     dim3(kPatch, kPatch), 0, stream, mirror_diagonal<Element>, some, square);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace sm90

cudaError_t symmetric_product_sm90_finish(const SymmetricProduct& product,
                                          const sm90::Schedule& schedule, cudaStream_t stream) {
  return product.dtype == DType::float16 ? sm90::finish<__half>(product, schedule, stream)
                                         : sm90::finish<__nv_bfloat16>(product, schedule, stream);
}

}  // namespace erlangen::kernels::cuda
