// What every kernel's header needs: the storage types, and functions for both host and device.

#pragma once

#if defined(__CUDACC__)
#define ERLANGEN_INLINE __host__ __device__ __forceinline__
#else
#define ERLANGEN_INLINE inline __attribute__((always_inline))
#endif

namespace erlangen::kernels {

enum class DType { float32, float64, bfloat16, float16 };

}  // namespace erlangen::kernels
