// The triangle below the diagonal, copied above it: D[c][r] <- D[r][c] for c < r.

#pragma once

#include <cstdint>

namespace erlangen::kernels::cpu {

// Copies what lies left of the diagonal in rows [begin, end) of a matrix whose elements have 2, 4
// or 8 bytes; `row` is the stride from row to row in elements. Ranges that do not overlap may run
// at the same time.
void mirror_lower(void* data, int64_t row, int element_bytes, int64_t begin, int64_t end);

}  // namespace erlangen::kernels::cpu
