// Which block of the symmetric-product kernels computes which tile. Plain index arithmetic,
// compiled for the device and for the host, where a test enumerates it.
//
// Of T x T tiles those on and below the diagonal are numbered row by row: (0,0), (1,0), (1,1),
// (2,0), ...; the matrices of a batch follow each other. Block b of B takes the tiles b, b + B,
// b + 2B, ...

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

}  // namespace erlangen::kernels::cuda
