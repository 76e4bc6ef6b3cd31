// The polar factor U·Vᵀ of a batch of matrices, by matrix products or exactly.
//
// Polynomials: Muon (Jordan), You Jiacheng, Polar Express (arXiv 2505.16932), DeepSeek-V4, and the
// cubic Newton-Schulz iteration. Gram form: Dao-AILab's gram-newton-schulz, with its restarts.
#pragma once

#include <ATen/core/Tensor.h>
#include <erlangen/functional.h>

#include <array>
#include <string>
#include <vector>

namespace erlangen {

// Which Gram matrix the polar factor goes through.
enum class Side { shorter, left, right };

std::vector<std::string> coefficient_set_names();

// The coefficients of each step of the iteration, as many as `options.ns_steps` says.
std::vector<std::array<double, 3>> iteration_steps(const PolarOptions& options);

// polar(X) for each matrix of x [B, m, n] (float32 or float64), over the singular values that are
// not zero; the zero matrix maps to zero. With ns_method "exact" those above the rounding error of
// x's type, by a decomposition in float64; else what the polynomials make of σ/‖X‖_F.
at::Tensor polar(const at::Tensor& x, Side side, const PolarOptions& options);

// How the iteration goes about matrices of one shape: on X or on its Gram matrix, and the type of
// its products.
struct PolarForm {
  bool gram;
  at::ScalarType dtype;
};

// For k×l matrices of `dtype`, the Gram matrix k×k; the method is not "exact".
PolarForm polar_form(at::ScalarType dtype, at::Device device, Side side, int64_t k, int64_t l,
                     const PolarOptions& options);

// Whether the Gram matrix is that of the columns: the iteration then works on the transposes.
bool takes_columns(Side side, int64_t m, int64_t n);

// Has the kernels checked that the polar factor of m×n matrices of `dtype` goes through
// (self_check.h).
void prove_polar(at::ScalarType dtype, at::Device device, Side side, int64_t m, int64_t n,
                 const PolarOptions& options);

// Overwrites x [B, k, l], in form.dtype, laid out as by empty_matrices, and of Frobenius norm at
// most 1, by the iteration's result.
void polar_normalised(const at::Tensor& x, const PolarForm& form, const PolarOptions& options);

}  // namespace erlangen
