// What the row-norm kernels are made of: storage types, 16-byte access, sums over a row's threads.
// For .cu files only.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "row_norm_tiles.h"

namespace erlangen::kernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Types

template <typename Param>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ double load(double x) { return x; }
__device__ __forceinline__ float load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float load(__half x) { return __half2float(x); }

__device__ __forceinline__ void store(float x, float* out) { *out = x; }
__device__ __forceinline__ void store(double x, double* out) { *out = x; }
__device__ __forceinline__ void store(float x, __nv_bfloat16* out) {
  *out = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void store(float x, __half* out) { *out = __float2half_rn(x); }

// Columns that are read and written together, 16 bytes at a time.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth < kVectorBytes ? sizeof(T) * kWidth : kVectorBytes) Pack {
  T values[kWidth];
};

template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> load_pack(const T* data) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(data);
}
template <typename T, int kWidth>
__device__ __forceinline__ void store_pack(const Pack<T, kWidth>& pack, T* data) {
  *reinterpret_cast<Pack<T, kWidth>*>(data) = pack;
}

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
