// Momentum, direction, norm and parameter of a run of elements on the CPU, for the kernels of rows
// and of what surrounds the polar iteration. The formulas stand in kernels/norm_step.h and
// kernels/row_norm.h. Included by .cpp files only.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../row_norm.h"
#include "prefetch.h"
#include "storage.h"

namespace erlangen::kernels::cpu {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kBlock = 4096;  // columns summed in lanes before they join the double

struct RowFacts {
  int32_t key = 0;             // of the direction's largest magnitude
  uint64_t gradient_bits = 0;  // not zero if some gradient element is not
};

// The new momentum and the direction of `cols` columns; kStore writes the momentum.
template <bool kNesterov, bool kStore, typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void take_gradient(const Param* __restrict__ grad, Momentum* __restrict__ momentum,
                                   Compute* __restrict__ direction, int64_t cols,
                                   const row_norm::Scalars<Compute>& s, RowFacts* facts) {
  int32_t key = facts->key;
  decltype(nonzero_bits(Param{})) gradient_bits = 0;
  for (int64_t c = 0; c < cols; ++c) {
    const Compute g = load(grad[c]);
    const Compute m = row_norm::blend(s, static_cast<Compute>(load(momentum[c])), g);
    const Compute x = kNesterov ? row_norm::blend(s, m, g) : m;
    if (kStore) store(m, &momentum[c]);
    direction[c] = x;
    key = std::max(key, row_norm::magnitude_key(x));
    gradient_bits |= nonzero_bits(grad[c]);
  }
  facts->key = key;
  facts->gradient_bits |= gradient_bits;
}

// In 32 lanes: column c is added to lane c mod 32, and the lanes of 4096 columns are folded by
// halves (lane l gains lane l + 16, l + 8, ... l + 1) and added to a double.
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

// How a row's parameter takes its direction y = direction * scale.
template <typename Compute>
struct RowUpdate {
  Compute scale;
  Compute length;
  Compute lost;
};

template <bool kCautious, typename Compute>
ERLANGEN_INLINE Compute moved(Compute p, Compute direction, const RowUpdate<Compute>& u) {
  const Compute y = direction * u.scale;
  const Compute lost = kCautious ? row_norm::cautiously(u.lost, p, y) : u.lost;
  return row_norm::updated(p, lost, u.length, y);
}

template <bool kCautious, typename Param, typename Compute>
ERLANGEN_INLINE void update(Param* __restrict__ param, const Compute* __restrict__ direction,
                            int64_t cols, const RowUpdate<Compute>& u) {
  for (int64_t c = 0; c < cols; ++c) {
    store(moved<kCautious>(static_cast<Compute>(load(param[c])), direction[c], u), &param[c]);
  }
}

// The same with stochastic rounding; the first column is number `element` of its parameter.
template <bool kCautious>
ERLANGEN_INLINE void update_rounding(BFloat16* __restrict__ param,
                                     const float* __restrict__ direction, int64_t cols,
                                     const RowUpdate<float>& u, const RoundingNoise& noise,
                                     int64_t element) {
  constexpr int64_t kNoise = 256;  // columns whose noise is made at once
  for (int64_t begin = 0; begin < cols; begin += kNoise) {
    const int64_t count = std::min(kNoise, cols - begin);
    const int64_t first = (element + begin) / 4;
    const int64_t quads = (element + begin + count + 3) / 4 - first;
    uint32_t words[kNoise + 8];
    for (int64_t q = 0; q < quads; ++q) {
      uint32_t four[4];
      noise_words(noise, static_cast<uint64_t>(first + q), four);
      for (int w = 0; w < 4; ++w) words[4 * q + w] = four[w];
    }
    const uint32_t* own = words + (element + begin - 4 * first);
    for (int64_t c = 0; c < count; ++c) {
      const float p = moved<kCautious>(load(param[begin + c]), direction[begin + c], u);
      param[begin + c].bits = stochastic_bfloat16(p, own[c]);
    }
  }
}

// One contiguous run of a row, as the options ask.
template <typename Param, typename Compute, typename Options>
ERLANGEN_INLINE void update_run(Param* param, const Compute* direction, int64_t cols,
                                const RowUpdate<Compute>& u, const Options& options,
                                const RoundingNoise& noise, int64_t element) {
  if constexpr (std::is_same_v<Param, BFloat16>) {
    if (options.stochastic_rounding) {
      return options.cautious ? update_rounding<true>(param, direction, cols, u, noise, element)
                              : update_rounding<false>(param, direction, cols, u, noise, element);
    }
  }
  if (options.cautious) return update<true>(param, direction, cols, u);
  update<false>(param, direction, cols, u);
}

}  // namespace
}  // namespace erlangen::kernels::cpu
