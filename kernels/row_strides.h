// How rows lie in a buffer, for the kernels that take rows from several buffers.

#pragma once

#include <cstdint>

namespace erlangen::kernels {

// Where a buffer keeps its rows, counted in elements. Row r of blocks of `inner` rows starts at
// (r / inner) * outer + (r % inner) * row. Its columns are one contiguous run, or two, each half of
// them, the second `segment` after the first.
struct RowStrides {
  int64_t outer;
  int64_t row;
  int64_t segment;

  bool operator==(const RowStrides& other) const {
    return outer == other.outer && row == other.row && segment == other.segment;
  }
};

}  // namespace erlangen::kernels
