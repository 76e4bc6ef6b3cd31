// Memory asked for before it is needed, strip by strip. Included by kernels/cpu only.

#pragma once

#include <cstdint>

#include "../types.h"

namespace erlangen::kernels::cpu {
namespace {

constexpr int64_t kStrip = 64;  // columns between prefetches, which a kernel also works on at once
constexpr int64_t kBytesAhead = 1024;
constexpr int64_t kCacheLine = 64;

// A hint: the address may lie past the buffer's end. Into the second-level cache: fetches into the
// first wait for each other.
template <typename T>
ERLANGEN_INLINE void prefetch(const T* strip, int64_t bytes_ahead) {
  constexpr int64_t kBytes = kStrip * static_cast<int64_t>(sizeof(T));
  const uintptr_t first = reinterpret_cast<uintptr_t>(strip) + static_cast<uintptr_t>(bytes_ahead);
  for (int64_t b = 0; b < kBytes; b += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(first + static_cast<uintptr_t>(b)), 0, 2);
  }
}

}  // namespace
}  // namespace erlangen::kernels::cpu
