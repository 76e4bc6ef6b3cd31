// The iterations that make singular values one by matrix products alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

namespace erlangen {

// Coefficients (a, b, c) of a·σ + b·σ³ + c·σ⁵, one triple a step.
using PolynomialSteps = std::vector<std::array<double, 3>>;

// Whether the Gram form needs fewer operations for k×l matrices.
bool gram_form_is_cheaper(int64_t k, int64_t l);

// The type of the Gram form's k×k matrices where products with the k×l matrix are in `dtype`.
at::ScalarType gram_dtype(at::ScalarType dtype, at::Device device, int64_t k, int64_t l);

// Overwrites each matrix of x [B, k, l], of Frobenius norm at most 1, with what the polynomials
// make of its singular values, without steps with itself; `gram` takes the Gram form. Products and
// scratch memory have x's type, but for gram_dtype. A matrix's result does not depend on the others
// where all products are our own: on the CPU, and on CUDA in one launch (polar_in_one_launch). Else
// it does so within the rounding of products, because cuBLAS may take another kernel for another
// batch.
void polar_iteration(const at::Tensor& x, const PolynomialSteps& steps, bool gram);

// Whether a kernel of its own takes matrices of this size through all steps in one launch, one
// block of threads a matrix (kernels/cuda/polar_iteration.cu); else product by product.
// `capability` is that of the CUDA device (90 for sm_90), 0 on a CPU; `aligned`: whether all rows
// lie at multiples of 16 bytes. It does not know the size of the batch, so that a matrix's result
// does not depend on what else is in it.
bool polar_in_one_launch(int capability, at::ScalarType dtype, int64_t k, int64_t l, size_t steps,
                         bool aligned);

// The same by the kernel of its device, which must take it: on CUDA that one launch.
void polar_iteration_by_kernel(const at::Tensor& x, const PolynomialSteps& steps, bool gram);

// Has the kernels checked that polar_iteration takes for k×l matrices (self_check.h).
void prove_polar_iteration(at::Device device, at::ScalarType dtype, int64_t k, int64_t l,
                           size_t steps, bool gram);

// How many batches that kernel has taken. For tests.
int64_t polar_kernel_count();

// Uninitialised, and laid out as the products like it: on the CPU each matrix begins at a multiple
// of 64 bytes, so that its result does not depend on its place in the batch; elsewhere each row at
// one of 16.
at::Tensor empty_matrices(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace erlangen
