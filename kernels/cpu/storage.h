// Storage types of the CPU kernels. Half precision by hand, without branches, so that loops over it
// vectorise. For kernels/cpu/*.cpp only.

#pragma once

#include <cstdint>
#include <cstring>

#include "../types.h"

// One body, compiled for several instruction sets; the loader picks.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define ERLANGEN_CPU_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define ERLANGEN_CPU_CLONES
#endif

// For lambdas that a clone calls: only what is inlined into it gets its instruction set.
#define ERLANGEN_INLINE_LAMBDA __attribute__((always_inline))

namespace erlangen::kernels::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

ERLANGEN_INLINE float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
ERLANGEN_INLINE uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}

ERLANGEN_INLINE float load(float x) { return x; }
ERLANGEN_INLINE double load(double x) { return x; }
ERLANGEN_INLINE float load(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

ERLANGEN_INLINE float load(Float16 x) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t bits = (x.bits & 0x7fffu) << 13;
  const uint32_t exponent = bits & (0x7c00u << 13);
  const uint32_t normal = bits + kRebias + (exponent == (0x7c00u << 13) ? kRebias : 0);
  // Subnormal: 2^-14 (1 + fraction) - 2^-14, exact, and safe where subnormals are flushed.
  const float small = from_bits(bits + kRebias + (1u << 23)) - from_bits(113u << 23);
  const uint32_t magnitude = exponent == 0 ? to_bits(small) : normal;
  return from_bits(magnitude | (x.bits & 0x8000u) << 16);
}

ERLANGEN_INLINE void store(float x, float* out) { *out = x; }
ERLANGEN_INLINE void store(double x, double* out) { *out = x; }

// To nearest, ties to even.
ERLANGEN_INLINE void store(float x, BFloat16* out) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const bool nan = static_cast<int32_t>(bits & 0x7fffffffu) > 0x7f800000;
  out->bits = static_cast<uint16_t>(nan ? (bits >> 16 | 0x40u) : rounded);
}

ERLANGEN_INLINE void store(float x, Float16* out) {
  const uint32_t bits = to_bits(x);
  const int32_t magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
  const int32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Below 2^-14: adding 1/2 leaves the multiple of 2^-24, rounded, in the low bits.
  const int32_t small = static_cast<int32_t>(to_bits(from_bits(magnitude) + 0.5f)) - (126 << 23);
  const int32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  int32_t half = magnitude < (113 << 23) ? small : normal;
  half = magnitude >= (143 << 23) ? special : half;
  out->bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

// The bits of a magnitude: zero for +0 and -0 only.
ERLANGEN_INLINE uint32_t nonzero_bits(float x) { return to_bits(x) << 1; }
ERLANGEN_INLINE uint32_t nonzero_bits(BFloat16 x) { return x.bits & 0x7fffu; }
ERLANGEN_INLINE uint32_t nonzero_bits(Float16 x) { return x.bits & 0x7fffu; }
ERLANGEN_INLINE uint64_t nonzero_bits(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits << 1;
}

}  // namespace erlangen::kernels::cpu
