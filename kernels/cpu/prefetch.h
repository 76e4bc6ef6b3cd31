// Memory asked for before it is needed, strip by strip. For kernels/cpu/*.cpp only.

#pragma once

#include <cstdint>

#include "../types.h"

namespace erlangen::kernels::cpu {
namespace {

constexpr int64_t kStrip = 64;  // columns between prefetches
constexpr int64_t kBytesAhead = 1024;
constexpr int64_t kCacheLine = 64;

// A hint: the address may lie past the buffer's end. Into the second-level cache, for fetches into
// the first wait for each other: with those a row-norm step took up to a fifth longer.
template <typename T>
ERLANGEN_INLINE void prefetch(const T* strip, int64_t bytes_ahead) {
  constexpr int64_t kBytes = kStrip * static_cast<int64_t>(sizeof(T));
  const char* first = reinterpret_cast<const char*>(strip) + bytes_ahead;
  for (int64_t b = 0; b < kBytes; b += kCacheLine) __builtin_prefetch(first + b, 0, 2);
}

}  // namespace
}  // namespace erlangen::kernels::cpu
