// What the devices can do, and what this build has for them.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

namespace erlangen {

// Whether a build for these architectures, in CMake's notation ("80-real,90a-real,120"), has code
// that a device of this compute capability runs: its own, that of a smaller minor version of the
// same major one, or PTX to compile from. The letter a ties code to one capability, f to one major
// version.
bool has_code_for(const std::string& architectures, int major, int minor);

// Raises c10::ValueError for a CUDA device of this compute capability if that is under 8.0, or if a
// build for these architectures has no code for it. `where` is what lies on the device.
void check_capability(const std::string& architectures, int major, int minor, c10::Device device,
                      const std::string& where);

// The same of a device that is there and of this build. One without CUDA kernels runs wherever
// torch does.
void check_device(c10::Device device, const std::string& where);

// Whether the device's current stream is being captured in a CUDA graph, so far as this build can
// know: false without CUDA kernels.
bool is_capturing(c10::Device device);

// The compute capability of a CUDA device, 90 for sm_90; 0 of any other, and in a build without
// CUDA kernels.
int cuda_capability(c10::Device device);

// Whether the kernels of this kind of device prove themselves at their first use (self_check.h):
// CUDA's. Those for CPUs do so in the tests. Apart from the check itself, so that a test can stand
// between.
bool proves_kernels(c10::DeviceType type);

// With what this CPU multiplies bfloat16 in ATen's products: no instructions of its own, or
// torch.backends.mkldnn, which uses them, is off; AVX512-BF16, about twice as fast as float32; or
// AMX's tiles, four to six times as fast.
enum class Bfloat16Products { none, vectors, tiles };
Bfloat16Products bfloat16_products();

// The type by whose roundoff ATen's float32 products round their inputs on this device: float32,
// or less where torch.set_float32_matmul_precision or torch.backends allows it; float16 stands for
// TensorFloat32, which has as many digits.
at::ScalarType float32_products(c10::Device device);

}  // namespace erlangen
