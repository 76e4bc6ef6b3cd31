// __half for the host: storage and conversions, by the bits. Arithmetic is the kernels' own, in
// float.

#pragma once

#include "types.h"

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;

  __half() = default;
  inline __half(float x);
  inline operator float() const;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half __ushort_as_half(uint16_t bits) {
  __half result;
  result.bits = bits;
  return result;
}
inline uint16_t __half_as_ushort(__half x) { return x.bits; }

inline __half __float2half_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  uint32_t half;
  if (bits > 0x7f800000) return __ushort_as_half(0x7fff);  // CUDA's NaN
  if (bits >= 0x477ff000) {                                // 65520: rounds to infinity
    half = 0x7c00;
  } else if (bits >= 0x38800000) {  // 2^-14: normal
    half = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10);
  } else {
    // The last place of a float in [0.5, 1) is the subnormals' unit, 2^-24.
    const float shifted = std::fabs(x) + 0.5f;
    std::memcpy(&half, &shifted, 4);
    half -= 0x3f000000;
  }
  return __ushort_as_half(static_cast<uint16_t>(sign | half));
}
inline __half __float2half(float x) { return __float2half_rn(x); }

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31;
  const int fraction = x.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction != 0 ? NAN : INFINITY;
  } else if (exponent == 0) {
    magnitude = static_cast<float>(fraction) * 0x1p-24f;
  } else {
    const uint32_t bits = (exponent + 112) << 23 | fraction << 13;
    std::memcpy(&magnitude, &bits, 4);
  }
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

inline __half::__half(float x) : bits(__float2half_rn(x).bits) {}
inline __half::operator float() const { return __half2float(*this); }

inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
