#include "device.h"

#include <ATen/Context.h>
#include <ATen/cpu/Utils.h>
#include <c10/util/Exception.h>

#include <cctype>
#include <sstream>

#ifdef ERLANGEN_CUDA
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#endif

namespace erlangen {

namespace {

// "90a-real" and the like.
bool has_code_for_one(const std::string& architecture, int major, int minor) {
  size_t end = 0;
  while (end < architecture.size() && std::isdigit(architecture[end])) ++end;
  if (end < 2 || end > 3) return true;  // "native", "all": CMake's choice, and not ours to judge
  const int number = std::stoi(architecture.substr(0, end));
  const int built_major = number / 10, built_minor = number % 10;
  const char letter = end < architecture.size() ? architecture[end] : '\0';
  if (letter == 'a') return major == built_major && minor == built_minor;
  const bool same_family = major == built_major && minor >= built_minor;
  if (letter == 'f') return same_family;
  const auto is = [&](const char* suffix) {
    return architecture.compare(end, std::string::npos, suffix) == 0;
  };
  const bool machine_code = !is("-virtual") && same_family;
  const bool ptx = !is("-real") && (major > built_major || same_family);
  return machine_code || ptx;
}

}  // namespace

bool has_code_for(const std::string& architectures, int major, int minor) {
  std::istringstream list(architectures);
  std::string architecture;
  while (std::getline(list, architecture, ',')) {
    if (!architecture.empty() && has_code_for_one(architecture, major, minor)) return true;
  }
  return false;
}

void check_capability(const std::string& architectures, int major, int minor, c10::Device device,
                      const std::string& where) {
  TORCH_CHECK_VALUE(major >= 8, where, " is on ", device, ", of compute capability ", major, ".",
                    minor, "; allowed: 8.0 (Ampere) and newer");
  TORCH_CHECK_VALUE(has_code_for(architectures, major, minor), where, " is on ", device,
                    ", of compute capability ", major, ".", minor, ", but erlangen was built for ",
                    architectures, ". Install it from source with TORCH_CUDA_ARCH_LIST=\"", major,
                    ".", minor, "\" or on a machine with this GPU.");
}

#ifdef ERLANGEN_CUDA

void check_device(c10::Device device, const std::string& where) {
  if (!device.is_cuda()) return;
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index()));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index()));
  check_capability(ERLANGEN_CUDA_ARCHITECTURES, major, minor, device, where);
}

bool is_capturing(c10::Device device) {
  if (!device.is_cuda()) return false;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(c10::cuda::getCurrentCUDAStream(device.index()), &status));
  return status != cudaStreamCaptureStatusNone;
}

int cuda_capability(c10::Device device) {
  if (!device.is_cuda()) return 0;
  const cudaDeviceProp* properties = at::cuda::getDeviceProperties(device.index());
  return 10 * properties->major + properties->minor;
}

#else

void check_device(c10::Device, const std::string&) {}

bool is_capturing(c10::Device) { return false; }

int cuda_capability(c10::Device) { return 0; }

#endif

bool proves_kernels(c10::DeviceType type) { return type == c10::DeviceType::CUDA; }

Bfloat16Products bfloat16_products() {
  static const Bfloat16Products instructions = [] {
    const auto found = at::cpu::get_cpu_capabilities();
    const auto has = [&](const char* name) {
      const auto flag = found.find(name);
      return flag != found.end() && flag->second.isBool() && flag->second.toBool();
    };
    // Linux grants the tiles to a process that asks; old kernels never do.
    if (has("amx_bf16") && at::cpu::init_amx()) return Bfloat16Products::tiles;
    return has("avx512_bf16") ? Bfloat16Products::vectors : Bfloat16Products::none;
  }();
  const bool used = at::hasMKLDNN() && at::globalContext().userEnabledMkldnn();
  return used ? instructions : Bfloat16Products::none;
}

at::ScalarType float32_products(c10::Device device) {
  const auto backend = device.is_cpu() ? at::Float32Backend::MKLDNN : at::Float32Backend::CUDA;
  switch (at::globalContext().float32Precision(backend, at::Float32Op::MATMUL)) {
    case at::Float32Precision::TF32: return at::kHalf;
    case at::Float32Precision::BF16: return at::kBFloat16;
    default: return at::kFloat;
  }
}

}  // namespace erlangen
