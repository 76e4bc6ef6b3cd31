// Storage types of the CUDA kernels and 16-byte access to them. For .cu files only.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "vectors.h"

namespace erlangen::kernels::cuda {

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

}  // namespace erlangen::kernels::cuda
