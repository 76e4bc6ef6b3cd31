// Kernels prove themselves before they are used: the first time that a step wants one on a device,
// for types that it has not had there, it runs on small cases with tails beside its ATen reference
// on the CPU. One that differs, or whose launch raises an error, is not used in this process: a
// warning says what differed, and the reference takes over.
//
// The environment says otherwise: ERLANGEN_SELF_CHECK=0 leaves the check out, 1 makes a difference
// an error, raised before the step has changed anything.
//
// A check runs on the current stream and waits for it. It draws no random numbers, and no kernel
// that it runs is counted as a step's (kernel_count).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace erlangen {

enum class Kernel {
  row_norm,
  centered_row_norm,
  column_norm,
  polar_update,       // what surrounds the polar iteration
  polar_iteration,    // of small matrices, in one launch
  symmetric_product,  // by mma.sync
  symmetric_product_sm90,
  mirror_lower,
};

// The types that a kernel is compiled for: of parameter (and gradient) and momentum, for
// polar_update of the products too; of the others that of their matrices.
using Dtypes = std::vector<at::ScalarType>;

// A kernel as it is checked, and remembered: on one device, for these types.
struct KernelUse {
  Kernel kernel;
  at::Device device;
  Dtypes dtypes;

  // "row_norm of float32 parameters with bfloat16 momentum"
  std::string name() const;
};

// Whether the kernel may be used. Checks it where that has not been done and its device is one
// whose kernels do so (proves_kernels, device.h). Raises c10::ValueError where the device's stream
// is being captured in a CUDA graph before the check, c10::Error for a kernel that fails under
// ERLANGEN_SELF_CHECK=1.
bool proven(const KernelUse& use);

// Whether wgmma's kernel may be taken where it is the fastest: ERLANGEN_WGMMA=1 says so, for until
// it has run on a Hopper it is not the default. A kernel that hangs cannot be checked from within.
bool takes_wgmma();

// What a kernel must give: a value on the CPU and how far each element may lie from it, by the
// roundoff of the types and the lengths of sums, not by what some kernel gave. Both float64, of
// one shape.
struct Expected {
  std::string what;  // "parameter [5, 37]"
  at::Tensor value;
  at::Tensor tolerance;
};

// The cases of one kernel: how to run them on a device, and what must come out, in the same order.
struct KernelCase {
  Kernel kernel;
  const char* name;
  std::vector<Dtypes> dtypes;        // all that the kernel is compiled for
  bool (*is_built_for)(at::Device);  // whether this build has it for the device
  std::vector<at::Tensor> (*run)(const KernelUse&);
  std::vector<Expected> (*reference)(const KernelUse&);
};
const std::vector<KernelCase>& kernel_cases();  // self_check_cases.cpp

// What differs in the outputs of a case, in words; empty where nothing does.
std::string difference(const std::vector<at::Tensor>& outputs,
                       const std::vector<Expected>& expected);

// Checks all kernels of the device, whether or not they have been, or will be, used; remembers
// nothing. What failed is in words; empty where nothing did.
struct KernelOutcome {
  std::string kernel;  // as KernelUse::name
  std::string failure;
};
std::vector<KernelOutcome> check_kernels(at::Device device);

// The kernels whose outcome this process remembers. For tests.
std::vector<KernelOutcome> remembered_outcomes();

}  // namespace erlangen
