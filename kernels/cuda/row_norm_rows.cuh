// A row of the row-norm kernels and what is done to it. The formula stands in kernels/row_norm.h.
// For .cu files only.

#pragma once

#include <cstdint>
#include <type_traits>

#include "row_norm_device.cuh"
#include "row_norm_tiles.h"

namespace erlangen::kernels::cuda {

template <typename Param, typename Momentum, typename Compute>
struct Row {
  const RowNormTensor& tensor;
  row_norm::RowPlace place;
  int64_t run;  // columns of a contiguous run
  Param* param;
  const Param* grad;
  Momentum* momentum;

  __device__ __forceinline__ Row(const RowNormTensor& tensor, const RowNormOptions& options,
                                 const row_norm::RowPlace& place)
      : tensor(tensor), place(place), run(options.segments == 1 ? options.cols : options.cols / 2) {
    param = static_cast<Param*>(tensor.param) + row_norm::row_start(tensor.param_strides, place);
    grad = static_cast<const Param*>(tensor.grad) + row_norm::row_start(tensor.grad_strides, place);
    momentum = static_cast<Momentum*>(tensor.momentum) +
               row_norm::row_start(tensor.momentum_strides, place);
  }

  // Computed where they are wanted: kept from the start they would cost registers meanwhile.
  __device__ __forceinline__ Compute lost() const {  // 1 - decay
    return static_cast<Compute>(row_norm::lost(tensor));
  }
  __device__ __forceinline__ Compute step_size() const {
    return static_cast<Compute>(row_norm::step_size(tensor));
  }

  // Where column c stands, counted from column 0.
  __device__ __forceinline__ int64_t at(int64_t c, const RowStrides& strides) const {
    return c < run ? c : c - run + strides.segment;
  }
  __device__ __forceinline__ Param* param_at(int64_t c) const {
    return param + at(c, tensor.param_strides);
  }
  __device__ __forceinline__ const Param* grad_at(int64_t c) const {
    return grad + at(c, tensor.grad_strides);
  }
  __device__ __forceinline__ Momentum* momentum_at(int64_t c) const {
    return momentum + at(c, tensor.momentum_strides);
  }
  // In the contiguous parameter. Computed where it is wanted, too.
  __device__ __forceinline__ int64_t element_at(int64_t c) const {
    return tensor.element_offset + row_norm::row_start(tensor.element_strides, place) +
           at(c, tensor.element_strides);
  }
};

// Updates a pack's momentum in place, gives its direction, and notes whether it has a gradient.
template <typename Param, typename Momentum, typename Compute, int kWidth>
__device__ __forceinline__ void take_gradient(const row_norm::Scalars<Compute>& s, bool nesterov,
                                              const Pack<Param, kWidth>& grad,
                                              Pack<Momentum, kWidth>* momentum,
                                              Compute (&direction)[kWidth], bool* has_gradient) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const Compute g = load(grad.values[i]);
    const Compute m = row_norm::blend(s, static_cast<Compute>(load(momentum->values[i])), g);
    store(m, &momentum->values[i]);
    direction[i] = nesterov ? row_norm::blend(s, m, g) : m;
    *has_gradient |= g != Compute(0);
  }
}

// Column c and those that follow it in its pack take their direction times `scale`.
template <typename Param, typename Momentum, typename Compute, int kWidth>
__device__ __forceinline__ void update(const Row<Param, Momentum, Compute>& row,
                                       const RowNormOptions& options, int64_t c,
                                       Pack<Param, kWidth>* param, Compute length,
                                       const Compute (&direction)[kWidth], Compute scale) {
  const Compute all_lost = row.lost();
  const auto moved = [&](int i) {
    const Compute p = load(param->values[i]);
    const Compute y = direction[i] * scale;
    const Compute lost = options.cautious ? row_norm::cautiously(all_lost, p, y) : all_lost;
    return row_norm::updated(p, lost, length, y);
  };
  if constexpr (std::is_same<Param, __nv_bfloat16>::value) {
    if (options.stochastic_rounding) {
      const RoundingNoise noise = row_norm::rounding_noise(row.tensor, options);
      const int64_t element = row.element_at(c);
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (i % 4 == 0) noise_words(noise, static_cast<uint64_t>(element + i) / 4, words);
        uint32_t word = words[i % 4];
        if constexpr (kWidth == 1) {
          const uint32_t high = element & 1 ? words[3] : words[2];
          word = element & 2 ? high : element & 1 ? words[1] : words[0];
        }
        param->values[i] = __ushort_as_bfloat16(stochastic_bfloat16(moved(i), word));
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) store(moved(i), &param->values[i]);
}

// The factor from prescaled direction to update. Asked of the sum, not of the maximum: a row of NaN
// is no row of zeros.
template <typename Compute>
__device__ __forceinline__ Compute update_length(Compute step_size, Compute squares) {
  return squares == Compute(0) ? Compute(0) : step_size / sqrt(squares);
}

}  // namespace erlangen::kernels::cuda
