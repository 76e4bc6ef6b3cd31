// Products of a batch of matrices into a tensor that is already there, and those whose result is
// known to be symmetric, of which only half is computed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace erlangen {

// How a symmetric product is computed. Whatever the way, the part above the diagonal is a copy of
// the part below.
enum class SymmetricRoute {
  plain,     // the whole product, by ATen
  strips,    // by ATen, a strip of rows after the other, each up to the diagonal only
  mma_sync,  // kernels/cuda/symmetric_product.cu
  wgmma,     // Hopper's own tensor-core instructions
};

// Whether the wgmma kernel is in this build.
#ifdef ERLANGEN_SM90
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif

// What a route is chosen by, for n×n results of n×k factors. Not by the size of the batch: what
// else is in it can change a matrix's result only through cuBLAS's own choices.
struct SymmetricOperands {
  at::ScalarType dtype;  // of the result
  int64_t n, k;
  bool mma_sync = false;  // whether that kernel takes them: all rows at multiples of 16 bytes
  bool wgmma = false;     // whether that kernel is in this build and takes them
};

// The choice. `capability` is that of the CUDA device (90 for sm_90), 0 on a CPU.
SymmetricRoute symmetric_route(int capability, const SymmetricOperands& operands);

// The choice among what may be used on this device: a kernel that has failed its self-check is left
// out, and so is wgmma's until someone asks for it (takes_wgmma, self_check.h).
SymmetricRoute proven_symmetric_route(at::Device device, SymmetricOperands operands);

// out ← beta·c + alpha·a·bᵀ for a, b [B, n, k] and c, out [B, n, n], where c and the result are
// symmetric up to rounding: b = a, or both symmetric and commuting. With beta = 0, c is not read
// and may be undefined. out must not share memory with the others. a and b may be in half precision
// where out is in float32: rounded once, to that.
void symmetric_product_out(const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                           const at::Tensor& b, double beta, double alpha);

// The same by a given route, which must take these operands; a, b and out have one type.
void symmetric_product_by(SymmetricRoute route, const at::Tensor& out, const at::Tensor& c,
                          const at::Tensor& a, const at::Tensor& b, double beta, double alpha);

// Copies the part below the diagonal of each matrix above it, by the kernel of its device.
void mirror_by_kernel(const at::Tensor& out);

// out ← beta·c + alpha·a·b, any product.
void product_out(const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                 const at::Tensor& b, double beta, double alpha);

// How many matrices of a batch our kernels take at once, if each needs so many bytes for partial
// sums: that these stay bounded. The results do not depend on it.
int64_t symmetric_slice(int64_t batch, int64_t bytes);

// How many symmetric products ran in a kernel of our own. For tests.
int64_t symmetric_kernel_count();

}  // namespace erlangen
