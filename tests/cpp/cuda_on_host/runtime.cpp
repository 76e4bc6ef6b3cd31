// The CUDA runtime's calls, for the device that a test describes.

#include <cstring>
#include <utility>

#include "../cuda_on_host.h"

namespace {

cudaError_t last_error = cudaSuccess;

}  // namespace

cudaError_t cuda_on_host::set_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = cuda_on_host::device.sms; break;
    case cudaDevAttrComputeCapabilityMajor: *value = cuda_on_host::device.capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = cuda_on_host::device.capability % 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(cuda_on_host::kMaxSharedBytes);
      break;
    default: return cuda_on_host::set_error(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "another error";
  }
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
