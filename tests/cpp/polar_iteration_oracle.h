// The polar iteration in plain loops: to the bit as the CUDA kernel for small matrices rounds it
// when it runs on the host, and in double with or without random errors of rounding's size (Monte
// Carlo arithmetic), from which the tests take their bounds.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "row_norm_oracle.h"

namespace erlangen::testing {

using Steps = std::vector<std::array<double, 3>>;
using Dense = std::vector<double>;  // row by row

struct NamedSteps {
  const char* name;
  Steps steps;
};

inline const std::vector<NamedSteps>& all_coefficient_sets() {
  static const std::vector<NamedSteps> sets = [] {
    constexpr std::array<double, 3> jordan = {3.4445, -4.7750, 2.0315};
    Steps polar_express = {{8.28721201814563, -23.595886519098837, 17.300387312530933},
                           {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
                           {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
                           {3.3184196573706015, -2.488488024314874, 0.51004894012372},
                           {2.300652019954817, -1.6689039845747493, 0.4188073119525673}};
    for (auto& [a, b, c] : polar_express) {
      a /= 1.05, b /= std::pow(1.05, 3), c /= std::pow(1.05, 5);
    }
    Steps deepseek(8, jordan);
    deepseek.insert(deepseek.end(), 2, {2.0, -1.5, 0.5});
    return std::vector<NamedSteps>{{"polar_express", polar_express},
                                   {"jordan", Steps(5, jordan)},
                                   {"you",
                                    {{4.0848, -6.8946, 2.9270},
                                     {3.9505, -6.3029, 2.6377},
                                     {3.7418, -5.5913, 2.3037},
                                     {2.8769, -3.1427, 1.2046},
                                     {2.8366, -3.0525, 1.2012}}},
                                   {"deepseek_v4", deepseek},
                                   {"cubic", Steps(15, {1.5, -0.5, 0.0})}};
  }();
  return sets;
}

// A matrix of Frobenius norm 1, as far as `dtype` holds it.
inline Dense unit_matrix(DType dtype, int64_t k, int64_t l, std::mt19937& generator) {
  std::normal_distribution<double> normal;
  Dense x(k * l);
  double squares = 0;
  for (double& v : x) v = normal(generator), squares += v * v;
  for (double& v : x) v = decode_half(dtype, encode_half(dtype, v / std::sqrt(squares)));
  return x;
}

inline double frobenius(const Dense& a, const Dense& b) {
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squares);
}

// One matrix at a time.
class PolarOracle {
 public:
  enum class Arithmetic { kernel, exact, noisy };

  PolarOracle(DType dtype, Arithmetic arithmetic, int64_t k, int64_t l, unsigned seed = 0)
      : dtype_(dtype), arithmetic_(arithmetic), k_(k), l_(l), generator_(seed) {}

  Dense run(Dense x, const Steps& steps, size_t period) {
    for (size_t i = 0; i < steps.size();) {
      // Of up to 64 rows the kernel sums the second halves of each 128 columns, and of the squares,
      // apart.
      const bool halves = k_ <= 64;
      const auto square = [&](double alpha, const Dense& a, const Dense& b, double beta,
                              const Dense& c, double diagonal = 0) {
        return symmetric(alpha, a, b, k_, halves ? 32 : k_, beta, c, diagonal);
      };
      Dense r = symmetric(1, x, x, l_, halves ? 64 : l_, 0, {}, 0);
      const auto [a, b, c] = steps[i];
      const bool two = period == 2 && i > 0 && i + 1 < steps.size();
      Dense q = square(c, r, r, b, r, two ? 0 : a);
      if (two) {
        const Dense rz = square(1, r, q, a, r);
        r = square(1, q, rz, a, rz);
        for (int64_t j = 0; j < k_; ++j) q[j * k_ + j] = rounded(q[j * k_ + j] + single(a));
        const auto [a2, b2, c2] = steps[i + 1];
        const Dense z = square(c2, r, r, b2, r);
        q = square(1, q, z, a2, q);
      }
      Dense next(k_ * l_);
      for (int64_t row = 0; row < k_; ++row) {
        for (int64_t col = 0; col < l_; ++col) {
          double sum = 0;
          for (int64_t j = 0; j < k_; ++j) add(&sum, q[row * k_ + j] * x[j * l_ + col]);
          next[row * l_ + col] = rounded(sum);
        }
      }
      x = next;
      i += two ? 2 : 1;
    }
    return x;
  }

 private:
  bool kernel() const { return arithmetic_ == Arithmetic::kernel; }
  double single(double x) const { return kernel() ? static_cast<float>(x) : x; }
  void add(double* sum, double term) const { *sum = single(*sum + term); }

  double rounded(double x) {
    if (arithmetic_ == Arithmetic::exact) return x;
    if (kernel()) return decode_half(dtype_, encode_half(dtype_, single(x)));
    const Format f = format(dtype_);
    const double unit = std::ldexp(0.5, -f.fraction_bits);  // and of subnormal numbers
    std::uniform_real_distribution<double> uniform(-1, 1);
    return x + uniform(generator_) * unit * std::max(std::fabs(x), std::ldexp(1, f.min_exponent));
  }

  // alpha A B^T + beta C + diagonal I, where every second run of `run` columns is summed apart.
  Dense symmetric(double alpha, const Dense& a, const Dense& b, int64_t cols, int64_t run,
                  double beta, const Dense& c, double diagonal) {
    alpha = single(alpha), beta = single(beta), diagonal = single(diagonal);
    Dense d(k_ * k_);
    for (int64_t i = 0; i < k_; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sums[2] = {0, 0};
        for (int64_t at = 0; at < cols; ++at) {
          add(&sums[at / run % 2], a[i * cols + at] * b[j * cols + at]);
        }
        add(&sums[0], sums[1]);
        double value = single(alpha * sums[0]);
        if (beta != 0)
          value = kernel() ? std::fmaf(static_cast<float>(beta), static_cast<float>(c[i * k_ + j]),
                                       static_cast<float>(value))
                           : beta * c[i * k_ + j] + value;
        if (i == j) value = single(value + diagonal);
        d[i * k_ + j] = d[j * k_ + i] = rounded(value);
      }
    }
    return d;
  }

  DType dtype_;
  Arithmetic arithmetic_;
  int64_t k_, l_;
  std::mt19937 generator_;
};

// How far rounding may carry the result from that in exact arithmetic: some samples of noise, which
// is no worst case, times four, as in tests/python/bounds.py.
inline double polar_rounding(DType dtype, const Dense& x, int64_t k, int64_t l, const Steps& steps,
                             size_t period, const Dense& exact) {
  double spread = 0;
  for (unsigned seed = 1; seed <= 3; ++seed) {
    PolarOracle noisy(dtype, PolarOracle::Arithmetic::noisy, k, l, seed);
    spread = std::max(spread, frobenius(noisy.run(x, steps, period), exact));
  }
  return 4 * spread;
}

}  // namespace erlangen::testing
