// Which block and thread of the kernels around the polar iteration works on which elements. Plain
// index arithmetic, compiled for the device and for the host.
//
// The matrices of a call are numbered through, tensor after tensor. Each is cut into tiles of 64
// rows by 64 columns, as it lies in memory or as it lies in x; tiles are numbered along the columns
// first, then down the rows, then from matrix to matrix. Block b takes the tiles b, b + B, b + 2B,
// ... of B blocks. In a tile thread t of 256 has packs of four columns, from column 4 (t mod 16)
// on, in the rows t / 16, t / 16 + 16, + 32 and + 48, whether it can load them at once or one by
// one: so that no sum depends on how a tensor is aligned.

#pragma once

#include <cstdint>

#include "../polar_update.h"
#include "vectors.h"

namespace erlangen::kernels::cuda {

constexpr int kPolarTile = 64;
constexpr int kPolarPack = 4;
constexpr int kPolarPacks = 4;  // of a thread in a tile
constexpr int kPolarThreads = 256;
constexpr int kPolarTilePacks = kPolarTile / kPolarPack;  // of a tile's row
constexpr int kPolarTileStep = kPolarThreads / kPolarTilePacks;
static_assert(kPolarPacks * kPolarTileStep == kPolarTile, "a tile is a thread's packs");

ERLANGEN_INLINE int64_t polar_tiles(int64_t rows, int64_t cols) {
  return ((rows + kPolarTile - 1) / kPolarTile) * ((cols + kPolarTile - 1) / kPolarTile);
}

struct PolarTile {
  int64_t matrix;  // of the call
  int64_t row, col;
};

ERLANGEN_INLINE PolarTile polar_tile(int64_t rows, int64_t cols, int64_t tile) {
  const int64_t across = (cols + kPolarTile - 1) / kPolarTile;
  const int64_t strip = tile / across;
  const int64_t down = (rows + kPolarTile - 1) / kPolarTile;
  const int64_t matrix = strip / down;
  return {matrix, (strip - matrix * down) * kPolarTile, (tile - strip * across) * kPolarTile};
}

// Whether strides and sizes keep packs whole and aligned, for tensors that begin aligned.
ERLANGEN_INLINE bool packs_fit(const PolarUpdateOptions& options) {
  const auto steps = [&](const RowStrides& strides) {
    return (options.rows == 1 || strides.row % kPolarPack == 0) &&
           (options.matrices == 1 || strides.outer % kPolarPack == 0) &&
           (options.segments == 1 || strides.segment % kPolarPack == 0);
  };
  // Four elements share the words of one counter.
  const bool whole_noise =
      !options.stochastic_rounding ||
      (options.element_offset % kPolarPack == 0 && steps(options.element_strides));
  return options.cols / options.segments % kPolarPack == 0 && steps(options.param_strides) &&
         steps(options.grad_strides) && steps(options.momentum_strides) && whole_noise;
}

// Whether x's rows begin at multiples of 16 bytes, as the kernels want them.
inline bool x_is_aligned(const PolarUpdateOptions& options) {
  const int bytes = options.product_dtype == DType::float64   ? 8
                    : options.product_dtype == DType::float32 ? 4
                                                              : 2;
  return reinterpret_cast<uintptr_t>(options.x) % kVectorBytes == 0 &&
         options.x_row * bytes % kVectorBytes == 0 && options.x_matrix * bytes % kVectorBytes == 0;
}

// The table of tensors lies in device memory, so that a pass is one launch however many there are.
// It gets there as kernel arguments, of which every driver takes 4 KB: a captured graph then holds
// it, and nothing waits.
constexpr int kPolarTensorsPerCopy =
    (4096 - 2 * static_cast<int>(sizeof(int64_t))) / static_cast<int>(sizeof(PolarTensor));

struct PolarTable {
  PolarTensor tensors[kPolarTensorsPerCopy];
  int64_t count;
};

// What the passes keep beside the tensors.
struct PolarScratch {
  PolarTensor* tensors;
  double* squares;  // [matrices, tiles], of each tile
  int32_t* keys;    // [matrices, tiles], of its largest magnitude

  static ERLANGEN_INLINE int64_t bytes(int64_t count, const PolarUpdateOptions& options) {
    const int64_t tiles = count * options.matrices * polar_tiles(options.rows, options.cols);
    return count * static_cast<int64_t>(sizeof(PolarTensor)) +
           tiles * static_cast<int64_t>(sizeof(double) + sizeof(int32_t));
  }
  static ERLANGEN_INLINE PolarScratch in(void* memory, int64_t count,
                                         const PolarUpdateOptions& options) {
    const int64_t tiles = count * options.matrices * polar_tiles(options.rows, options.cols);
    PolarScratch scratch;
    scratch.tensors = static_cast<PolarTensor*>(memory);
    scratch.squares = reinterpret_cast<double*>(scratch.tensors + count);
    scratch.keys = reinterpret_cast<int32_t*>(scratch.squares + tiles);
    return scratch;
  }
};

}  // namespace erlangen::kernels::cuda
