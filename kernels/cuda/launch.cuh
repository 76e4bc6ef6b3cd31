// How all our kernels are launched, and how they reach dynamic shared memory. For .cu files only.
//
// On the host (ERLANGEN_CUDA_ON_HOST, tests/cpp/cuda_on_host.h) the same two names run a kernel on
// the CPU, which `kernel<<<...>>>` could not.

#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace erlangen::kernels::cuda {

#ifdef ERLANGEN_CUDA_ON_HOST

using cuda_on_host::dynamic_shared;
using cuda_on_host::launch;

#else

// Shared memory that a launch may have without asking for it.
constexpr size_t kPlainSharedBytes = 48 * 1024;

// Starts `kernel(arguments...)` and says whether it could be started; nothing waits for it.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (shared_bytes > kPlainSharedBytes) {
    // All that it may have: another thread may be about to start the same kernel with more.
    int device = 0, most = 0;
    cudaFuncAttributes attributes;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error != cudaSuccess) return error;
    error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 most - static_cast<int>(attributes.sharedSizeBytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// The block's dynamic shared memory, at a multiple of 128 bytes.
__device__ __forceinline__ void* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

#endif

// The same with as many blocks as the device holds at once, or `needed` if they are fewer: each
// goes on to further work. Without dynamic shared memory.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_on_all(int64_t needed, int threads, cudaStream_t stream,
                          void (*kernel)(Parameters...), Arguments&&... arguments) {
  int device = 0, sms = 0, blocks_on_sm = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_on_sm, kernel, threads, 0);
  if (error != cudaSuccess) return error;
  const int64_t held = static_cast<int64_t>(sms) * std::max(blocks_on_sm, 1);
  return launch(static_cast<unsigned>(std::min(needed, held)), threads, 0, stream, kernel,
                std::forward<Arguments>(arguments)...);
}

}  // namespace erlangen::kernels::cuda
