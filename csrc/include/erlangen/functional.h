// The bare rules as pure functions on tensors [..., m, n]: each matrix on its own, the result in
// the input's type. Also registered as torch.ops.erlangen.*.
//
// Formulas: arXiv 2605.18106. R(X) divides each row by its length, Π X = X − 1·mean_rows(X),
// polar(X) = U·Vᵀ over the nonzero singular values. Zero rows and zero matrices map to zero.
// Results require no gradient.
// Errors: c10::TypeError for tensors that are not floating point, c10::ValueError for fewer than
// two dimensions and for option values outside those of EquivariantOptions.
#pragma once

#include <ATen/core/Tensor.h>
#include <erlangen/options.h>

#include <optional>
#include <string>

namespace erlangen {

// How polar(X) is computed; the fields mean what they mean in EquivariantOptions.
struct PolarOptions {
  NsCoefficients ns_coefficients = {};
  std::optional<int64_t> ns_steps = std::nullopt;
  std::string ns_method = "auto";
  std::string ns_dtype = "auto";
  double ns_eps = 0.0;

  bool operator==(const PolarOptions&) const = default;
};

// Π X: subtracts the mean over rows (dimension -2).
torch::Tensor center(const torch::Tensor& x);
// R(X): rows of unit length.
torch::Tensor row_norm(const torch::Tensor& x);
// Columns of unit length.
torch::Tensor column_norm(const torch::Tensor& x);
// ‖X‖_*^alpha · polar(X), from the Gram matrix of the shorter side.
torch::Tensor spectral(const torch::Tensor& x, double alpha = 0.0, const PolarOptions& = {});
// The same as X (XᵀX)^(-1/2), from the n×n Gram matrix.
torch::Tensor right_spectral(const torch::Tensor& x, double alpha = 0.0, const PolarOptions& = {});
// The same as (XXᵀ)^(-1/2) X, from the m×m Gram matrix.
torch::Tensor left_spectral(const torch::Tensor& x, double alpha = 0.0, const PolarOptions& = {});
// order "row_then_polar": ‖Y‖_*^alpha · polar(Y) with Y = R(X); "polar_then_row": R(polar(X)).
// With `center`, X and Y are centered first and the result after.
torch::Tensor hybrid(const torch::Tensor& x, const std::string& order = "row_then_polar",
                     bool center = false, double alpha = 0.0, const PolarOptions& = {});

}  // namespace erlangen
