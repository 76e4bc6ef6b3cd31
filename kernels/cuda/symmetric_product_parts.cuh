// The second kernel of symmetric products whose sums over k were cut into parts. For .cu files
// only.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "launch.cuh"
#include "symmetric_product.cuh"
#include "symmetric_product_tiles.h"

namespace erlangen::kernels::cuda {

// A block adds a patch of 32 x 32 of a tile, 256 threads with four elements each.
constexpr int kPatch = 32;
constexpr int kPatchRows = 8;

// `Tiles` says where tiles lie: kTile, their size; count, of a matrix; row(index) and column(index)
// of the first element. The sums of a tile's part lie row by row, at partial_tile. Both sides of
// the diagonal are written along rows.
template <typename T, typename Tiles>
__global__ void __launch_bounds__(kPatch* kPatchRows)
    add_parts(const __grid_constant__ SymmetricProduct p, const __grid_constant__ Tiles tiles,
              int parts, const float* partials) {
  constexpr int kTile = Tiles::kTile, kPatches = kTile / kPatch;
  constexpr int kFloats = kTile * kTile, kValues = kPatch / kPatchRows;
  __shared__ T patch[kPatch][kPatch + 2];
  const int64_t matrix = blockIdx.x / tiles.count;
  const int64_t index = blockIdx.x - matrix * tiles.count;
  const int64_t tile_row = tiles.row(index), tile_column = tiles.column(index);
  const int in_row = static_cast<int>(blockIdx.y) / kPatches * kPatch;
  const int in_column = static_cast<int>(blockIdx.y) % kPatches * kPatch;
  const int64_t r0 = tile_row + in_row, c0 = tile_column + in_column;
  // Of a tile on the diagonal what lies below it counts.
  const bool diagonal = tile_row == tile_column;
  if (r0 >= p.n || c0 >= p.n || (diagonal && r0 < c0)) return;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);

  float sums[kValues] = {};
  const float* from = partials + partial_tile(parts, tiles.count, matrix, 0, index) * kFloats +
                      (in_row + y) * kTile + in_column + x;
#pragma unroll 4
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int v = 0; v < kValues; ++v) sums[v] += from[v * kPatchRows * kTile];
    from += tiles.count * kFloats;
  }
  const T* const c = static_cast<const T*>(p.c) + (p.beta == 0.0f ? 0 : matrix * p.c_batch);
  T* const d = static_cast<T*>(p.d) + matrix * p.d_batch;
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    const int64_t i = r0 + y + v * kPatchRows, j = c0 + x;
    if (i >= p.n || j >= p.n || (diagonal && i < j)) continue;
    float sum = p.alpha * sums[v];
    if (p.beta != 0.0f) sum = fmaf(p.beta, static_cast<float>(c[i * p.c_row + j]), sum);
    patch[y + v * kPatchRows][x] = d[i * p.d_row + j] = static_cast<T>(sum);
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    const int64_t i = r0 + x, j = c0 + y + v * kPatchRows;
    if (i >= p.n || j >= p.n || (diagonal && i <= j)) continue;
    d[j * p.d_row + i] = patch[x][y + v * kPatchRows];
  }
}

template <typename T, typename Tiles>
cudaError_t launch_add_parts(const SymmetricProduct& p, const Tiles& tiles, int parts,
                             const float* partials, cudaStream_t stream) {
  constexpr int kPatches = Tiles::kTile / kPatch;
  return launch(dim3(static_cast<unsigned>(p.batch * tiles.count), kPatches * kPatches),
                dim3(kPatch, kPatchRows), 0, stream, add_parts<T, Tiles>, p, tiles, parts,
                partials);
}

}  // namespace erlangen::kernels::cuda
