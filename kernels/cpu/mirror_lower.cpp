#include "mirror_lower.h"

#include <algorithm>

namespace erlangen::kernels::cpu {

namespace {

// In tiles, of which both the rows and the columns fit into the first cache.
constexpr int64_t kTile = 32;

template <typename T>
void mirror(T* data, int64_t row, int64_t begin, int64_t end) {
  for (int64_t r0 = begin; r0 < end; r0 += kTile) {
    const int64_t r1 = std::min(r0 + kTile, end);
    for (int64_t c0 = 0; c0 < r1; c0 += kTile) {
      for (int64_t c = c0; c < std::min(c0 + kTile, r1); ++c) {
        for (int64_t r = std::max(r0, c + 1); r < r1; ++r) data[c * row + r] = data[r * row + c];
      }
    }
  }
}

}  // namespace

void mirror_lower(void* data, int64_t row, int element_bytes, int64_t begin, int64_t end) {
  switch (element_bytes) {
    case 2: return mirror(static_cast<uint16_t*>(data), row, begin, end);
    case 4: return mirror(static_cast<uint32_t*>(data), row, begin, end);
    default: return mirror(static_cast<uint64_t*>(data), row, begin, end);
  }
}

}  // namespace erlangen::kernels::cpu
