// What the passes of the centered row-norm kernels share. For .cu files only.

#pragma once

#include "row_norm_rows.cuh"

namespace erlangen::kernels::cuda {

// What a pass needs to compute directions, and whether it must read the gradient for it.
template <typename Param, typename Momentum, typename Compute>
struct Directions {
  // The momentum in memory is the old one until the last pass.
  static constexpr bool kLate = sizeof(Momentum) < sizeof(Compute);

  row_norm::Scalars<Compute> s;
  bool nesterov;

  __device__ __forceinline__ explicit Directions(const RowNormOptions& options)
      : s(row_norm::scalars<Compute>(options)), nesterov(options.nesterov) {}

  __device__ __forceinline__ bool reads_grad() const { return kLate || nesterov; }

  // After the first pass. `momentum` becomes the new one, if it was not.
  template <int kWidth>
  __device__ __forceinline__ void again(const Pack<Param, kWidth>& grad,
                                        Pack<Momentum, kWidth>* momentum,
                                        Compute (&direction)[kWidth]) const {
    if constexpr (kLate) {
      bool unused = false;
      take_gradient(s, nesterov, grad, momentum, direction, &unused);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const Compute m = load(momentum->values[i]);
        direction[i] =
            nesterov ? row_norm::blend(s, m, static_cast<Compute>(load(grad.values[i]))) : m;
      }
    }
  }
};

}  // namespace erlangen::kernels::cuda
