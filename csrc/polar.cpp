#include "polar.h"

#include "device.h"
#include "polar_iteration.h"
#include "reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>
#include <map>

namespace erlangen {

namespace {

using Triple = std::array<double, 3>;
using Triples = std::vector<Triple>;

// How many steps of a set are taken when nobody says, and its triples; the last one repeats.
struct CoefficientSet {
  size_t steps;
  Triples triples;
};

// Polar Express is optimal on [1e-3, 1]. The safety 1.05 scales its argument, so that a norm that
// low precision rounds up to just over 1 does not diverge.
Triples polar_express() {
  constexpr double s = 1.05;
  Triples triples = {{8.28721201814563, -23.595886519098837, 17.300387312530933},
                     {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
                     {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
                     {3.3184196573706015, -2.488488024314874, 0.51004894012372},
                     {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
                     {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
                     {1.8750014808534479, -1.2500016453999487, 0.3750001645474248}};
  for (auto& [a, b, c] : triples) {
    a /= s;
    b /= s * s * s;
    c /= s * s * s * s * s;
  }
  triples.push_back({1.875, -1.25, 0.375});
  return triples;
}

const std::map<std::string, CoefficientSet>& coefficient_sets() {
  constexpr Triple kJordan = {3.4445, -4.7750, 2.0315};
  static const std::map<std::string, CoefficientSet> sets = {
      {"polar_express", {5, polar_express()}},
      {"jordan", {5, {kJordan}}},
      {"you",
       {5,
        {{4.0848, -6.8946, 2.9270},
         {3.9505, -6.3029, 2.6377},
         {3.7418, -5.5913, 2.3037},
         {2.8769, -3.1427, 1.2046},
         {2.8366, -3.0525, 1.2012}}}},
      {"deepseek_v4",
       {10,
        {kJordan,
         kJordan,
         kJordan,
         kJordan,
         kJordan,
         kJordan,
         kJordan,
         kJordan,
         {2.0, -1.5, 0.5}}}},
      {"cubic", {15, {{1.5, -0.5, 0.0}}}},
  };
  return sets;
}

// Divides where the divisor is not zero.
at::Tensor safe_reciprocal(const at::Tensor& divisor, const at::Tensor& is_zero) {
  return at::where(is_zero, 0.0, divisor.masked_fill(is_zero, 1.0).reciprocal());
}

// Singular values up to this share of the largest count as zero in the exact method. x [.., k, l]
// is float64, and its entries carry rounding errors of `dtype`, in which they were computed.
// Independent errors of a few units in the last place have a spectral norm of a few units of the
// largest singular value, whatever the size (a row is no longer than that); the decomposition's
// own error grows with the size.
double exact_cutoff(const at::Tensor& x, at::ScalarType dtype) {
  constexpr double kEps32 = std::numeric_limits<float>::epsilon();
  constexpr double kEps64 = std::numeric_limits<double>::epsilon();
  const double size = static_cast<double>(std::max(x.size(-2), x.size(-1)));
  return std::max(16.0 * (dtype == at::kDouble ? kEps64 : kEps32), size * kEps64);
}

at::Tensor exact_by_svd(const at::Tensor& x, double cutoff) {
  const auto [u, sigma, vh] = at::linalg_svd(x, /*full_matrices=*/false);
  const at::Tensor kept = sigma.gt(sigma.amax(-1, true) * cutoff).to(x.scalar_type());
  return at::matmul(u * kept.unsqueeze(-2), vh);
}

// (XXᵀ)^(-1/2) X with the pseudo-inverse root of the left Gram matrix.
at::Tensor exact_by_gram(const at::Tensor& x, double cutoff) {
  const auto [lambda, q] = at::linalg_eigh(at::matmul(x, x.mT()));
  const double own_error = static_cast<double>(x.size(-2)) * std::numeric_limits<double>::epsilon();
  const at::Tensor dropped =
      lambda.le(lambda.amax(-1, true) * std::max(cutoff * cutoff, own_error));
  const at::Tensor root = safe_reciprocal(lambda.clamp_min(0.0).sqrt(), dropped);
  return at::matmul(q * root.unsqueeze(-2), at::matmul(q.mT(), x));
}

}  // namespace

std::vector<std::string> coefficient_set_names() {
  std::vector<std::string> names;
  for (const auto& [name, set] : coefficient_sets()) names.push_back(name);
  return names;
}

Triples iteration_steps(const PolarOptions& options) {
  const NsCoefficients& given = options.ns_coefficients;
  Triples steps = given.triples;
  size_t count = steps.size() == 1 ? 5 : steps.size();  // one triple alone: five times, as in Muon
  if (steps.empty()) {
    const CoefficientSet& set = coefficient_sets().at(given.name);
    steps = set.triples;
    count = set.steps;
  }
  if (options.ns_steps) count = static_cast<size_t>(*options.ns_steps);
  steps.resize(count, steps.back());
  return steps;
}

PolarForm polar_form(at::ScalarType dtype, at::Device device, Side side, int64_t k, int64_t l,
                     const PolarOptions& options) {
  const std::string &name = options.ns_dtype, &method = options.ns_method;
  const bool automatic = method == "auto";
  const bool gram = method == "gram" || (automatic && gram_form_is_cheaper(k, l));
  const Bfloat16Products bfloat16 = bfloat16_products();
  if (name == "auto" && dtype != at::kDouble && device.is_cpu() &&
      bfloat16 != Bfloat16Products::none) {
    // In bfloat16 the Gram form begins anew with every step and saves nothing. In float32 it is,
    // for five steps, the cheaper one from about 3:1 on at half the rate, and never at a fifth. Who
    // asks for one side wants its precision.
    const bool long_enough = bfloat16 == Bfloat16Products::vectors && l >= 3 * k;
    const bool wide = method == "gram" || (automatic && (side != Side::shorter || long_enough));
    return wide ? PolarForm{gram, at::kFloat} : PolarForm{false, at::kBFloat16};
  }
  // float16 over bfloat16 where both are as fast: every entry is at most 1 here.
  const at::ScalarType products = name == "float32"      ? at::kFloat
                                  : name == "bfloat16"   ? at::kBFloat16
                                  : name == "float16"    ? at::kHalf
                                  : dtype == at::kDouble ? at::kDouble
                                  : device.is_cuda()     ? at::kHalf
                                                         : at::kFloat;
  return {products == at::kBFloat16 ? method == "gram" : gram, products};
}

bool takes_columns(Side side, int64_t m, int64_t n) {
  return side == Side::right || (side == Side::shorter && m > n);
}

void prove_polar(at::ScalarType dtype, at::Device device, Side side, int64_t m, int64_t n,
                 const PolarOptions& options) {
  if (options.ns_method == "exact" || m == 0 || n == 0) return;
  const auto [k, l] = takes_columns(side, m, n) ? std::pair(n, m) : std::pair(m, n);
  const PolarForm form = polar_form(dtype, device, side, k, l, options);
  prove_polar_iteration(device, form.dtype, k, l, iteration_steps(options).size(), form.gram);
}

void polar_normalised(const at::Tensor& x, const PolarForm& form, const PolarOptions& options) {
  // Autocast would take the products out of the type that ns_dtype asks for.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  polar_iteration(x, iteration_steps(options), form.gram);
}

at::Tensor polar(const at::Tensor& x, Side side, const PolarOptions& options) {
  const int64_t m = x.size(-2), n = x.size(-1);
  // From here on the Gram matrix is that of the rows.
  const bool transposed = takes_columns(side, m, n);
  const auto [scaled, exponent] = reference::prescale(transposed ? x.mT() : x, {-2, -1});
  const int64_t k = scaled.size(-2), l = scaled.size(-1);

  at::Tensor result;
  if (options.ns_method == "exact") {
    // Autocast would take the products out of float64.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    // Decompositions refuse NaN and infinity, which the other methods hand on as NaN.
    const at::Tensor finite = scaled.isfinite().all(-1, true).all(-2, true);
    const at::Tensor wide = scaled.to(at::kDouble).masked_fill(finite.logical_not(), 0.0);
    const double cutoff = exact_cutoff(wide, x.scalar_type());
    result = side == Side::shorter ? exact_by_svd(wide, cutoff) : exact_by_gram(wide, cutoff);
    // Zero rows and columns stay zero; a decomposition leaves noise there, which a row norm to
    // follow would make rows of unit length.
    result = result * wide.ne(0.0).any(-1, true) * wide.ne(0.0).any(-2, true);
    result = result.masked_fill(finite.logical_not(), std::numeric_limits<double>::quiet_NaN());
  } else {
    const PolarForm form = polar_form(x.scalar_type(), x.device(), side, k, l, options);
    const at::Tensor cast = scaled.to(form.dtype);
    // The norm of what the iteration sees, not of what it was cast from: rounding could otherwise
    // push a singular value over the polynomials' limit.
    at::Tensor norm = at::linalg_vector_norm(cast, 2, {-2, -1}, true, x.scalar_type());
    if (options.ns_eps > 0.0) {
      norm = at::maximum(norm,
                         reference::power_of_two(-exponent, norm.scalar_type()) * options.ns_eps);
    }
    result = empty_matrices(cast.sizes(), cast.options());
    at::mul_out(result, cast, safe_reciprocal(norm, norm.eq(0.0)));
    polar_normalised(result, form, options);
  }
  result = result.to(x.scalar_type());
  return transposed ? result.mT() : result;
}

}  // namespace erlangen
