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

#include "storage.h"

namespace erlangen::kernels::cpu {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kBlock = 4096;  // columns summed in lanes before they join the double
constexpr int64_t kStrip = 64;    // columns between prefetches
constexpr int64_t kBytesAhead = 1024;
constexpr int64_t kCacheLine = 64;

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
