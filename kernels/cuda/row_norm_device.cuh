// What the row-norm kernels are made of: sums over a row's threads. For .cu files only.

#pragma once

#include <cstdint>

#include "row_norm_tiles.h"
#include "storage.cuh"

namespace erlangen::kernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Sums over the threads of a row. Every thread gets the same result, bit for bit: in the
// butterfly both partners add the same two numbers.

__device__ __forceinline__ int32_t warp_max(int32_t x) { return __reduce_max_sync(kAllLanes, x); }

template <typename Compute>
__device__ __forceinline__ Compute warp_sum(Compute x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}

template <typename Compute, int kThreads>
struct RowTeam {
  static constexpr int kWarps = kThreads / kWarp;
  static_assert(kWarps <= kWarp, "a warp adds up the warps");

  // Two arrays, so that one barrier a reduction is enough: by the time one is written again, all
  // threads have passed the other's barrier, which they reach after having read it.
  int32_t* keys;
  Compute* sums;

  // Largest key; *any becomes whether it holds for any thread.
  __device__ __forceinline__ int32_t max(int32_t key, bool* any) const {
    key = warp_max(key);
    if constexpr (kWarps == 1) {
      *any = __any_sync(kAllLanes, *any);
      return key;
    } else {
      const int lane = threadIdx.x % kWarp;
      if (lane == 0) keys[threadIdx.x / kWarp] = key;
      *any = __syncthreads_or(*any);
      return warp_max(lane < kWarps ? keys[lane] : 0);
    }
  }

  __device__ __forceinline__ Compute sum(Compute x) const {
    x = warp_sum(x);
    if constexpr (kWarps == 1) {
      return x;
    } else {
      const int lane = threadIdx.x % kWarp;
      if (lane == 0) sums[threadIdx.x / kWarp] = x;
      __syncthreads();
      return warp_sum(lane < kWarps ? sums[lane] : Compute(0));
    }
  }
};

}  // namespace erlangen::kernels::cuda
