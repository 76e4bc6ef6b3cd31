#include "mirror_lower.h"

#include <algorithm>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace erlangen::kernels::cpu {

namespace {

// In tiles, of which both the rows and the columns fit into the first cache.
constexpr int64_t kTile = 32;

template <typename T>
bool mirror_whole_tile(const T*, T*, int64_t) {
  return false;
}

#ifdef __SSE2__

// Blocks of 8x8 elements of 2 bytes, transposed in registers: three times, the first half of the
// rows interleaved with the second.
bool mirror_whole_tile(const uint16_t* from, uint16_t* to, int64_t row) {
  for (int64_t c = 0; c < kTile; c += 8) {
    for (int64_t r = 0; r < kTile; r += 8) {
      __m128i rows[8], next[8];
      for (int64_t i = 0; i < 8; ++i) {
        rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (r + i) * row + c));
      }
      for (int time = 0; time < 3; ++time) {
        for (int64_t i = 0; i < 4; ++i) {
          next[2 * i] = _mm_unpacklo_epi16(rows[i], rows[i + 4]);
          next[2 * i + 1] = _mm_unpackhi_epi16(rows[i], rows[i + 4]);
        }
        std::copy_n(next, 8, rows);
      }
      for (int64_t i = 0; i < 8; ++i) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (c + i) * row + r), rows[i]);
      }
    }
  }
  return true;
}

#endif

template <typename T>
void mirror(T* data, int64_t row, int64_t begin, int64_t end) {
  for (int64_t r0 = begin; r0 < end; r0 += kTile) {
    const int64_t r1 = std::min(r0 + kTile, end);
    for (int64_t c0 = 0; c0 < r1; c0 += kTile) {
      const bool whole = c0 + kTile <= r0 && r0 + kTile == r1;
      if (whole && mirror_whole_tile(data + r0 * row + c0, data + c0 * row + r0, row)) continue;
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
