// Copies the triangle below the diagonal above it, by tiles that are turned in shared memory, so
// that both sides are read and written along rows.

#include <algorithm>

#include "launch.cuh"
#include "mirror_lower.cuh"
#include "symmetric_product_tiles.h"

namespace erlangen::kernels::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kRows = 8;  // of a tile at once: 256 threads

template <typename T>
__global__ void __launch_bounds__(kTile* kRows)
    mirror(T* data, int64_t batch, int64_t n, int64_t row, int64_t matrix) {
  __shared__ T values[kTile][kTile + 1];
  const int64_t across = tiles_of(n, kTile);
  const int64_t tiles = batch * lower_tiles(across);
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const LowerTile tile = lower_tile(index, across);
    T* const base = data + tile.matrix * matrix;
    const int64_t r0 = tile.i * kTile, c0 = tile.j * kTile;
    for (int r = y; r < kTile; r += kRows) {
      if (r0 + r < n && c0 + x < n) values[r][x] = base[(r0 + r) * row + c0 + x];
    }
    __syncthreads();
    for (int c = y; c < kTile; c += kRows) {
      // Element (r0 + x, c0 + c) goes to its place above the diagonal.
      if (r0 + x < n && c0 + c < r0 + x) base[(c0 + c) * row + r0 + x] = values[x][c];
    }
    __syncthreads();
  }
}

template <typename T>
cudaError_t launch_mirror(void* data, int64_t batch, int64_t n, int64_t row, int64_t matrix,
                          cudaStream_t stream) {
  const int64_t tiles = batch * lower_tiles(tiles_of(n, kTile));
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, 1 << 16));
  return launch(blocks, kTile * kRows, 0, stream, mirror<T>, static_cast<T*>(data), batch, n, row,
                matrix);
}

}  // namespace

cudaError_t mirror_lower(void* data, int64_t batch, int64_t n, int64_t row, int64_t matrix,
                         int element_bytes, cudaStream_t stream) {
  if (batch == 0 || n == 0) return cudaSuccess;
  switch (element_bytes) {
    case 2: return launch_mirror<uint16_t>(data, batch, n, row, matrix, stream);
    case 4: return launch_mirror<uint32_t>(data, batch, n, row, matrix, stream);
    case 8: return launch_mirror<uint64_t>(data, batch, n, row, matrix, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace erlangen::kernels::cuda
