// How the wgmma kernel for symmetric products divides its work. Plain index arithmetic, compiled
// for the device and for the host, where a test enumerates it; knows nothing of CUTLASS.
//
// D is cut into blocks of 128 x 128; a tile is one block (narrow) or two side by side (wide). A
// cluster of two thread blocks computes a pair: two tiles of one column of tiles, so that both read
// the same rows of B, which are loaded once and multicast. Tiles above the diagonal are left out,
// and a tile off the diagonal is stored twice, as it is and mirrored:
//
//   wide     A column of wide tiles takes row blocks in twos, so that a pair is a square of 256 and
//            the diagonal squares are computed whole.
//   narrow   Column j has T - j tiles on and below the diagonal. Where that is odd, one is left
//            over. All of these are taken from the last row, where they share a block: as the tiles
//            (j, T - 1), above the diagonal, they make pairs of one column, and their mirrors are
//            what was asked for. That needs (A B^T)^T = A B^T to the last bit, that is A = B;
//            otherwise such a tile's partner is a row of tiles beyond the matrix, which reads zeros
//            and stores nothing.
//
// Pairs are numbered in strips of a few columns, left to right, and in a strip row by row from the
// bottom: the pairs in flight at one time then touch few rows of A and B, which stay in the L2
// cache.

#pragma once

#include <cstdint>

#include "symmetric_product_tiles.h"

namespace erlangen::kernels::cuda::sm90 {

constexpr int kBlock = 128;  // rows of a tile, columns of a narrow one
constexpr int kStepK = 64;   // of k, loaded and multiplied at once
constexpr int kMmaThreads = 256;
constexpr int kStripColumns = 1024;
constexpr int kPartialFloats = kBlock * kBlock;  // of a narrow tile's sum over part of k

struct Triangle {
  int32_t rows;     // row blocks, T
  int32_t columns;  // of tiles
  int32_t width;    // blocks a tile is wide: 1 or 2
  bool transposes;  // leftover tiles of the last row are computed transposed
  int32_t strip;    // columns of tiles in a strip
};

ERLANGEN_INLINE Triangle triangle_of(int64_t n, int width, bool equal_operands) {
  Triangle t;
  t.rows = static_cast<int32_t>((n + kBlock - 1) / kBlock);
  t.columns = (t.rows + width - 1) / width;
  t.width = width;
  t.transposes = width == 1 && equal_operands;
  t.strip = kStripColumns / (kBlock * width);
  return t;
}

// Pairs in one column of tiles, of which `remaining` (this one included) are still to come; and in
// all of these columns together.
ERLANGEN_INLINE int32_t pairs_in_column(const Triangle& t, int32_t remaining) {
  if (t.width == 2) return remaining;
  return (t.transposes ? remaining : remaining + 1) / 2;
}
ERLANGEN_INLINE int32_t pairs_from_column(const Triangle& t, int32_t remaining) {
  const int64_t r = remaining;
  if (t.width == 2) return static_cast<int32_t>(r * (r + 1) / 2);
  return static_cast<int32_t>(t.transposes ? r * r / 4 : (r + 1) * (r + 1) / 4);
}

ERLANGEN_INLINE int32_t leftover_pairs(const Triangle& t) {
  return t.transposes ? ((t.rows + 1) / 2 + 1) / 2 : 0;
}
ERLANGEN_INLINE int32_t pairs_of(const Triangle& t) {
  return pairs_from_column(t, t.columns) + leftover_pairs(t);
}

// Row block of the pair's two thread blocks, and column of tiles. A row may be t.rows, beyond the
// matrix.
struct Pair {
  int32_t rows[2];
  int32_t column;
};

// An index that is not a constant would put the pair into memory.
ERLANGEN_INLINE int32_t row_of(const Pair& pair, int rank) {
  return rank == 0 ? pair.rows[0] : pair.rows[1];
}

ERLANGEN_INLINE Pair pair_at(const Triangle& t, int32_t index) {
  const int32_t all = pairs_from_column(t, t.columns);
  if (index >= all) {  // leftovers, from the diagonal's end upwards
    const int32_t row = t.rows - 1 - 4 * (index - all);
    return {{row, row >= 2 ? row - 2 : t.rows}, t.rows - 1};
  }
  // The strip: the last whose first pair is not after this one.
  int32_t low = 0, high = (t.columns + t.strip - 1) / t.strip - 1;
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (all - pairs_from_column(t, t.columns - middle * t.strip) <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int32_t begin = low * t.strip;
  const int32_t end = begin + t.strip < t.columns ? begin + t.strip : t.columns;
  int32_t place = index - (all - pairs_from_column(t, t.columns - begin));
  // The level within the strip, counted from the bottom. At first every column reaches it, near the
  // diagonal fewer and fewer do.
  const int32_t full = pairs_in_column(t, t.columns - end + 1);
  int32_t level = place / (end - begin);
  int32_t column;
  if (level < full) {
    column = begin + place % (end - begin);
  } else {
    level = full;
    place -= full * (end - begin);
    for (;; ++level) {
      int32_t last = t.width == 2 ? t.columns - level : t.rows - 2 * level - t.transposes;
      last = last < end ? last : end;
      if (place < last - begin) break;
      place -= last - begin;
    }
    column = begin + place;
  }
  // Rows end with the matrix, one row block earlier or later where the column's number is odd.
  int32_t bottom = 2 * t.columns;
  if (t.width == 1) {
    const int32_t odd = (t.rows - column) % 2;
    bottom = t.transposes ? t.rows - odd : t.rows + odd;
  }
  return {{bottom - 2 * level - 2, bottom - 2 * level - 1}, column};
}

// Whether a tile is stored mirrored too. The squares on the diagonal are not: both their halves are
// computed.
ERLANGEN_INLINE bool is_mirrored(int32_t row, int32_t column, int32_t width) {
  return row / width != column;
}

// ---- Sums over long k are cut into parts: of narrow tiles only

struct Plan {
  int32_t width;  // of a tile, in blocks
  Cut cut;        // of k, in steps of kStepK
};

// One cluster's turn. Units of one part of k follow each other, so that those that run at the same
// time read the same columns of A and B.
struct Unit {
  Pair pair;
  int32_t index_in_matrix;
  int32_t part;
  int32_t matrix;
};

ERLANGEN_INLINE Unit unit_at(const Triangle& t, int32_t parts, int32_t pairs, int32_t index) {
  Unit unit;
  const int32_t slice = index / pairs;
  unit.index_in_matrix = index - slice * pairs;
  unit.matrix = slice / parts;
  unit.part = slice - unit.matrix * parts;
  unit.pair = pair_at(t, unit.index_in_matrix);
  return unit;
}

// Where the sums of a tile's part begin, counted in floats.
ERLANGEN_INLINE int64_t partial_offset(int32_t parts, int32_t pairs, int32_t matrix, int32_t part,
                                       int32_t index_in_matrix, int32_t rank) {
  return partial_tile(parts, 2 * pairs, matrix, part, 2 * index_in_matrix + rank) * kPartialFloats;
}

// The place in a narrow tile of value v that one of the 256 threads holds: wgmma's accumulators,
// two warp groups of 64 rows. (PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16")
ERLANGEN_INLINE constexpr int accumulator_row(int thread, int v) {
  return thread / 128 * 64 + thread % 128 / 32 * 16 + v / 2 % 2 * 8 + thread % 32 / 4;
}
ERLANGEN_INLINE constexpr int accumulator_column(int thread, int v) {
  return v / 4 * 8 + thread % 4 * 2 + v % 2;
}

// ---- Which tile and how many parts, as on an H100 SXM with 132 SMs, two for a pair

constexpr int kSMs = 132;
constexpr Costs kWideCosts = {kSMs / 2, 0.70, 3.5, 4 * kPartialFloats};
// Half the work, at 0.85 of the speed.
constexpr Costs kNarrowCosts = {kSMs / 2, 0.41, 2.1, 2 * kPartialFloats};

inline Plan plan_for(int64_t n, int64_t k, bool equal_operands) {
  const auto steps = static_cast<int32_t>((k + kStepK - 1) / kStepK);
  const int32_t pairs = pairs_of(triangle_of(n, 1, equal_operands));
  const int32_t wide_pairs = pairs_of(triangle_of(n, 2, equal_operands));
  const Cut narrow = cut_for(kNarrowCosts, pairs, steps), wide = {1, steps};
  return estimated_time(kNarrowCosts, pairs, narrow) < estimated_time(kWideCosts, wide_pairs, wide)
             ? Plan{1, narrow}
             : Plan{2, wide};
}

// What the kernels are given.
struct Schedule {
  Triangle triangle;
  int32_t pairs;  // of a matrix
  int32_t parts;
  int32_t part_steps;
  int32_t last_steps;  // of the last part
  int32_t units;       // of the whole batch
  bool
      whole_squares;  // both halves of the diagonal squares come out alike: nothing to mirror there
  float* partials;
};

inline Schedule schedule_for(const Plan& plan, int64_t n, int64_t k, int64_t batch,
                             bool equal_operands, void* workspace) {
  Schedule s;
  s.triangle = triangle_of(n, plan.width, equal_operands);
  s.pairs = pairs_of(s.triangle);
  s.parts = plan.cut.parts;
  s.part_steps = plan.cut.part_steps;
  s.last_steps = static_cast<int32_t>((k + kStepK - 1) / kStepK) - (s.parts - 1) * s.part_steps;
  s.units = static_cast<int32_t>(batch * s.parts * s.pairs);
  s.whole_squares = equal_operands;
  s.partials = static_cast<float*>(workspace);
  return s;
}

}  // namespace erlangen::kernels::cuda::sm90
