// How the symmetric-product kernels divide their work. Plain index arithmetic, compiled for the
// device and for the host, where a test enumerates it.
//
// Of T x T tiles those on and below the diagonal are numbered row by row: (0,0), (1,0), (1,1),
// (2,0), ...; the matrices of a batch follow each other. Block b of B takes the tiles b, b + B,
// b + 2B, ...
//
// Where these tiles are few and the sums over k long, k is cut into parts: a matrix's tiles follow
// each other once for every part, and a second kernel adds the parts' sums in order.

#pragma once

#include <cmath>
#include <cstdint>

#include "../types.h"

namespace erlangen::kernels::cuda {

struct LowerTile {
  int64_t matrix;
  int64_t i, j;  // i >= j
};

ERLANGEN_INLINE int64_t tiles_of(int64_t n, int tile) { return (n + tile - 1) / tile; }

// Tiles on and below the diagonal, of `across` x `across`.
ERLANGEN_INLINE int64_t lower_tiles(int64_t across) { return across * (across + 1) / 2; }

ERLANGEN_INLINE LowerTile lower_tile(int64_t index, int64_t across) {
  const int64_t per_matrix = lower_tiles(across);
  LowerTile tile;
  tile.matrix = index / per_matrix;
  const int64_t place = index - tile.matrix * per_matrix;
  // Row i begins at i(i + 1)/2. In float the root may be off by one for many tiles; the loops put
  // it right.
  tile.i = static_cast<int64_t>((sqrtf(8.0f * static_cast<float>(place) + 1.0f) - 1.0f) * 0.5f);
  while (lower_tiles(tile.i) > place) --tile.i;
  while (lower_tiles(tile.i + 1) <= place) ++tile.i;
  tile.j = place - lower_tiles(tile.i);
  return tile;
}

// ---- Parts of k

struct Cut {
  int32_t parts;       // 1: no second kernel
  int32_t part_steps;  // steps of k in a part; the last part may have fewer
};

// Where the sums of a tile's part begin, counted in tiles; `tiles` are those of a matrix. Also the
// number of a tile's part in the batch.
ERLANGEN_INLINE int64_t partial_tile(int64_t parts, int64_t tiles, int64_t matrix, int64_t part,
                                     int64_t index_in_matrix) {
  return (matrix * parts + part) * tiles + index_in_matrix;
}

struct TilePart {
  LowerTile tile;
  int64_t part;
};

ERLANGEN_INLINE TilePart tile_part(int64_t index, int64_t across, int32_t parts) {
  TilePart unit;
  unit.tile = lower_tile(index, across);
  const int64_t slice = unit.tile.matrix;
  unit.tile.matrix = slice / parts;
  unit.part = slice - unit.tile.matrix * parts;
  return unit;
}

// ---- How many parts, by counting waves

// The choice is made as if one matrix were alone on one GPU of the kernel's kind, whatever the
// batch and the device: so that a matrix's result depends on neither. Times are estimates in µs,
// which move the choice and no result.
struct Costs {
  int at_once;  // units, tiles or pairs of them, that the GPU computes at a time
  double step;  // of k, for one unit
  double unit;  // to fill its pipeline and to store it
  int floats;   // of its sums
};
constexpr double kSecondKernel = 2.8;  // its launch
constexpr double kPartialBytes = 3e6;  // of sums written and read back in a µs
// So that in a batch, which fills the GPU anyway, the sums' way through memory takes no more than
// about a fifth of the time.
constexpr int kLeastPartSteps = 64;
constexpr int kMostParts = 64;
constexpr int64_t kMostPartialBytes = 64 << 20;  // of a matrix

inline double waves(int64_t work, int64_t at_once) {
  return static_cast<double>((work + at_once - 1) / at_once);
}

inline int64_t partial_bytes(const Costs& costs, int64_t units, const Cut& cut) {
  return cut.parts == 1 ? 0 : int64_t{4} * costs.floats * units * cut.parts;
}

// Of one matrix with so many units.
inline double estimated_time(const Costs& costs, int64_t units, const Cut& cut) {
  const double time =
      waves(units * cut.parts, costs.at_once) * (cut.part_steps * costs.step + costs.unit);
  if (cut.parts == 1) return time;
  return time + kSecondKernel +
         2.0 * static_cast<double>(partial_bytes(costs, units, cut)) / kPartialBytes;
}

inline Cut cut_for(const Costs& costs, int64_t units, int32_t steps) {
  Cut best = {1, steps};
  for (int32_t parts = 2; parts <= kMostParts; ++parts) {
    const int32_t part_steps = (steps + parts - 1) / parts;
    if (part_steps < kLeastPartSteps) break;
    const Cut cut = {(steps + part_steps - 1) / part_steps, part_steps};
    if (partial_bytes(costs, units, cut) > kMostPartialBytes) break;
    if (estimated_time(costs, units, cut) < estimated_time(costs, units, best)) best = cut;
  }
  return best;
}

// ---- Of the mma.sync kernel

constexpr int kMmaDepth = 32;  // of k in a step
// 128 rows for large matrices; 64 waste less of small ones, and make more tiles of them.
constexpr int kLargeTile = 128, kSmallTile = 64;
constexpr int64_t kSmallestForLargeTile = 512;

// As on an A100, 108 SMs. Each holds several blocks, but they share its tensor cores: one block of
// the large tile keeps them busy, two of the small one.
constexpr Costs kLargeTileCosts = {108, 0.48, 2.0, kLargeTile* kLargeTile};
constexpr Costs kSmallTileCosts = {2 * 108, 0.18, 1.5, kSmallTile* kSmallTile};

struct MmaPlan {
  int tile;
  int64_t across;  // tiles
  Cut cut;
};

inline MmaPlan mma_plan(int64_t n, int64_t k) {
  const bool large = n >= kSmallestForLargeTile;
  const int tile = large ? kLargeTile : kSmallTile;
  const int64_t across = tiles_of(n, tile);
  const auto steps = static_cast<int32_t>((k + kMmaDepth - 1) / kMmaDepth);
  return {tile, across,
          cut_for(large ? kLargeTileCosts : kSmallTileCosts, lower_tiles(across), steps)};
}

}  // namespace erlangen::kernels::cuda
