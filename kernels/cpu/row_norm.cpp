// The row-norm step on the CPU, one row at a time in three passes. The formula stands in
// kernels/row_norm.h.
//
//   1. momentum and direction: reads g and m, writes m; the direction goes to a scratch row
//   2. norm: the scratch row only
//   3. parameter: reads the scratch row, reads and writes p
//
// The scratch row stays in the nearest cache, so that memory sees each of g, m and p once: 20
// bytes an element in float32. Pass 1 goes strip by strip and asks for the parameter's strip, which
// pass 3 will want, and for the gradient and momentum of strips to come: hardware prefetchers start
// anew at every page, and a row is often just one. That saves up to a quarter of the time.
//
// The sum of squares is kept in 32 lanes: column c is added to lane c mod 32, and the lanes of 4096
// columns are folded by halves (lane l gains lane l + 16, l + 8, ... l + 1) and added to a double.
// No product is contracted with a sum, so that every instruction set below gives the same bits.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#elif defined(__clang__)
#pragma clang fp contract(off)
#endif

#include "row_norm.h"

#include <algorithm>
#include <cmath>
#include <memory>

// One body, compiled for several instruction sets; the loader picks.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define ERLANGEN_CPU_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define ERLANGEN_CPU_CLONES
#endif

namespace erlangen::kernels::cpu {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kBlock = 4096;  // columns summed in lanes before they join the double
constexpr int64_t kStrip = 64;    // columns between prefetches
constexpr int64_t kBytesAhead = 1024;
constexpr int64_t kCacheLine = 64;

// ---- Storage types. Half precision by hand, without branches, so that loops over it vectorise.

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

// ---- The three passes over a row.

// A hint: the address may lie past the buffer's end.
template <typename T>
ERLANGEN_INLINE void prefetch(const T* data, int64_t bytes_ahead) {
  const char* first = reinterpret_cast<const char*>(data) + bytes_ahead;
  for (int64_t b = 0; b < kStrip * static_cast<int64_t>(sizeof(T)); b += kCacheLine) {
    __builtin_prefetch(first + b);
  }
}

struct RowFacts {
  int32_t key = 0;             // of the direction's largest magnitude
  uint64_t gradient_bits = 0;  // not zero if some gradient element is not
};

template <bool kNesterov, typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void take_gradient(const Param* __restrict__ grad, Momentum* __restrict__ momentum,
                                   Compute* __restrict__ direction, int64_t cols,
                                   const row_norm::Scalars<Compute>& s, RowFacts* facts) {
  int32_t key = facts->key;
  decltype(nonzero_bits(Param{})) gradient_bits = 0;
  for (int64_t c = 0; c < cols; ++c) {
    const Compute g = load(grad[c]);
    const Compute m = row_norm::blend(s, static_cast<Compute>(load(momentum[c])), g);
    const Compute x = kNesterov ? row_norm::blend(s, m, g) : m;
    store(m, &momentum[c]);
    direction[c] = x;
    key = std::max(key, row_norm::magnitude_key(x));
    gradient_bits |= nonzero_bits(grad[c]);
  }
  facts->key = key;
  facts->gradient_bits |= gradient_bits;
}

template <typename Compute>
ERLANGEN_INLINE double sum_of_squares(const Compute* direction, int64_t cols, Compute scale) {
  double total = 0;
  for (int64_t block = 0; block < cols; block += kBlock) {
    const int64_t end = std::min(block + kBlock, cols);
    Compute lanes[kLanes] = {};
    int64_t c = block;
    for (; c + kLanes <= end; c += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        const Compute y = direction[c + l] * scale;
        lanes[l] += y * y;
      }
    }
    for (int l = 0; c + l < end; ++l) {
      const Compute y = direction[c + l] * scale;
      lanes[l] += y * y;
    }
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    total += lanes[0];
  }
  return total;
}

template <typename Param, typename Compute>
ERLANGEN_INLINE void update(Param* __restrict__ param, const Compute* __restrict__ direction,
                            int64_t cols, Compute scale, Compute length, Compute lost) {
  for (int64_t c = 0; c < cols; ++c) {
    const Compute p = load(param[c]);
    store(row_norm::updated(p, lost, length, direction[c] * scale), &param[c]);
  }
}

template <typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void step_rows(const RowNormTensor& tensor, const RowNormOptions& options,
                               int64_t begin, int64_t end) {
  const int64_t cols = options.cols;
  const auto s = row_norm::scalars<Compute>(options);
  const Compute lost = static_cast<Compute>(1.0 - tensor.decay);
  const std::unique_ptr<Compute[]> scratch(new Compute[cols]);
  Compute* direction = scratch.get();
  for (int64_t row = begin; row < end; ++row) {
    Param* param = static_cast<Param*>(tensor.param) + row * tensor.param_stride;
    const Param* grad = static_cast<const Param*>(tensor.grad) + row * tensor.grad_stride;
    Momentum* momentum = static_cast<Momentum*>(tensor.momentum) + row * tensor.momentum_stride;

    RowFacts facts;
    for (int64_t c = 0; c < cols; c += kStrip) {
      const int64_t count = std::min(kStrip, cols - c);
      prefetch(param + c, 0);
      prefetch(grad + c, kBytesAhead);
      prefetch(momentum + c, kBytesAhead);
      if (options.nesterov) {
        take_gradient<true>(grad + c, momentum + c, direction + c, count, s, &facts);
      } else {
        take_gradient<false>(grad + c, momentum + c, direction + c, count, s, &facts);
      }
    }
    if (options.gradient_support && facts.gradient_bits == 0) continue;

    Compute scale;
    row_norm::prescale(facts.key, &scale);
    const double squares = sum_of_squares(direction, cols, scale);
    // Asked of the sum, not of the maximum: a row of NaN is no row of zeros.
    const double length = squares == 0 ? 0 : tensor.step_size / std::sqrt(squares);
    update(param, direction, cols, scale, static_cast<Compute>(length), lost);
  }
}

// All types in one function, because the clones are per function and everything inlines into it.
ERLANGEN_CPU_CLONES void step_rows_of_any_type(const RowNormTensor& tensor,
                                               const RowNormOptions& options, int64_t begin,
                                               int64_t end) {
  const bool low = options.momentum_dtype == DType::bfloat16;
  switch (options.dtype) {
    case DType::float64: return step_rows<double, double, double>(tensor, options, begin, end);
    case DType::float32:
      return low ? step_rows<float, BFloat16, float>(tensor, options, begin, end)
                 : step_rows<float, float, float>(tensor, options, begin, end);
    case DType::bfloat16:
      return low ? step_rows<BFloat16, BFloat16, float>(tensor, options, begin, end)
                 : step_rows<BFloat16, float, float>(tensor, options, begin, end);
    case DType::float16:
      return low ? step_rows<Float16, BFloat16, float>(tensor, options, begin, end)
                 : step_rows<Float16, float, float>(tensor, options, begin, end);
  }
}

}  // namespace

void row_norm_step(const RowNormTensor& tensor, const RowNormOptions& options, int64_t begin,
                   int64_t end) {
  step_rows_of_any_type(tensor, options, begin, end);
}

}  // namespace erlangen::kernels::cpu
