// What the tests of the column-norm kernels share: a problem with its buffers, and the formula in
// double with what rounding allows.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/column_norm.h"
#include "row_norm_oracle.h"

namespace erlangen::testing {

using kernels::ColumnNormOptions;
using kernels::ColumnNormTensor;
using kernels::ColumnPairs;

// matrices x rows x cols elements; what lies between rows and matrices must stay as it is.
struct ColumnProblem {
  ColumnNormOptions options;
  int64_t matrices;
  int64_t gap;  // rows between matrices
  Buffer param, grad, momentum;
  double lr = 0.25;
  double weight_decay = 0.08;
  double factor = 1.5;

  ColumnProblem(int64_t matrices, const ColumnNormOptions& options, int64_t padding = 0,
                int64_t offset = 0)
      : options(options),
        matrices(matrices),
        gap(padding > 0 ? 1 : 0),
        param(options.dtype, matrices * height(), options.cols + padding, offset),
        grad(options.dtype, matrices * height(), options.cols + 2 * padding, offset),
        momentum(options.momentum_dtype, matrices * height(), options.cols + 3 * padding, offset) {}

  int64_t height() const { return options.rows + gap; }

  // Fresh numbers everywhere, the gaps included.
  void draw(unsigned seed, double scale) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    const auto fill = [&](Buffer* buffer, double size) {
      for (int64_t r = 0; r < matrices * height(); ++r) {
        for (int64_t c = 0; c < buffer->stride; ++c) buffer->set(r, c, size * normal(generator));
      }
    };
    fill(&param, 1);
    fill(&grad, scale);
    fill(&momentum, scale);
  }
  double get(Buffer& buffer, int64_t matrix, int64_t row, int64_t col) const {
    return buffer.get(matrix * height() + row, col);
  }
  void set(Buffer* buffer, int64_t matrix, int64_t row, int64_t col, double x) const {
    buffer->set(matrix * height() + row, col, x);
  }
  void clear_column(Buffer* buffer, int64_t matrix, int64_t col) const {
    for (int64_t r = 0; r < options.rows; ++r) set(buffer, matrix, r, col, 0);
  }
  ColumnNormTensor tensor() {
    return {.param = param.data(),
            .grad = grad.data(),
            .momentum = momentum.data(),
            .matrices = matrices,
            .param_stride = param.stride,
            .grad_stride = grad.stride,
            .momentum_stride = momentum.stride,
            .param_matrix_stride = param.stride * height(),
            .grad_matrix_stride = grad.stride * height(),
            .momentum_matrix_stride = momentum.stride * height(),
            .lr = lr,
            .lr_pointer = nullptr,
            .weight_decay = weight_decay,
            .weight_decay_pointer = nullptr,
            .factor = factor};
  }
};

inline ColumnNormOptions column_options(int64_t rows, int64_t cols,
                                        ColumnPairs pairs = ColumnPairs::none,
                                        const Types& types = kTypes[0]) {
  return {.rows = rows,
          .cols = cols,
          .pairs = pairs,
          .dtype = types.dtype,
          .momentum_dtype = types.momentum_dtype,
          .momentum = 0.9,
          .nesterov = false,
          .maximize = false,
          .cautious = false,
          .found_inf = nullptr,
          .grad_scale = nullptr};
}

// The columns of each unit.
inline std::vector<std::vector<int64_t>> units_of(const ColumnNormOptions& options) {
  std::vector<std::vector<int64_t>> units;
  const int64_t half = options.cols / 2;
  for (int64_t i = 0; i < (options.pairs == ColumnPairs::none ? options.cols : half); ++i) {
    switch (options.pairs) {
      case ColumnPairs::none: units.push_back({i}); break;
      case ColumnPairs::interleaved: units.push_back({2 * i, 2 * i + 1}); break;
      case ColumnPairs::concatenated: units.push_back({i, half + i}); break;
    }
  }
  return units;
}

// What lies beside the matrices is as it was.
inline void check_gaps(ColumnProblem before, ColumnProblem after) {
  ASSERT_EQ(after.grad.bytes, before.grad.bytes);
  const ColumnNormOptions& o = before.options;
  const auto check = [&](Buffer& now, Buffer& then) {
    for (int64_t r = 0; r < before.matrices * before.height(); ++r) {
      const bool gap = r % before.height() >= o.rows;
      for (int64_t c = gap ? 0 : o.cols; c < now.stride; ++c) {
        ASSERT_EQ(now.get(r, c), then.get(r, c)) << "beside row " << r;
      }
    }
  };
  check(after.param, before.param);
  check(after.momentum, before.momentum);
}

// Compares a step from `before` to `after` with the formula in double. `summands` bounds how many
// roundings a sum of squares goes through.
inline void check_against_oracle(ColumnProblem before, ColumnProblem after, int summands,
                                 double lr = 0.25, double grad_scale = 1) {
  const ColumnNormOptions& o = before.options;
  const double beta = o.momentum;
  const double u = std::ldexp(1, o.dtype == DType::float64 ? -53 : -24);
  const double step = lr * before.factor;
  const auto units = units_of(o);
  for (int64_t k = 0; k < before.matrices; ++k) {
    for (const auto& unit : units) {
      std::vector<double> x, error;
      double squares = 0;
      double error_squares = 0;
      for (const int64_t c : unit) {
        for (int64_t r = 0; r < o.rows; ++r) {
          const double g = (o.maximize ? -1 : 1) * before.get(before.grad, k, r, c) / grad_scale;
          const double old = before.get(before.momentum, k, r, c);
          const double m = beta * old + (1 - beta) * g;
          // Two constants, two products, a division, a sum.
          double slack = 6 * u * (std::fabs(beta * old) + std::fabs((1 - beta) * g));
          ASSERT_NEAR(after.get(after.momentum, k, r, c), m,
                      1.01 * after.momentum.rounding(m) + slack)
              << "matrix " << k << " row " << r << " column " << c;
          x.push_back(o.nesterov ? beta * m + (1 - beta) * g : m);
          if (o.nesterov) slack += 6 * u * (std::fabs(beta * m) + std::fabs((1 - beta) * g));
          // A direction kept in half precision would show here: it is not.
          error.push_back(slack);
          squares += x.back() * x.back();
          error_squares += slack * slack;
        }
      }
      const double norm = std::sqrt(squares);
      const double relative =
          norm == 0 ? 0 : (summands / 2 + 4) * u + std::sqrt(error_squares) / norm;
      size_t i = 0;
      for (const int64_t c : unit) {
        for (int64_t r = 0; r < o.rows; ++r, ++i) {
          const double p = before.get(before.param, k, r, c);
          const double direction = norm == 0 ? 0 : x[i] / norm;
          const bool agree = (p > 0 && x[i] > 0) || (p < 0 && x[i] < 0);
          const double lost = !o.cautious || agree ? lr * before.weight_decay : 0;
          const double expected = p - lost * p - step * direction;
          const double slack = norm == 0 ? 0 : error[i] / norm + relative * std::fabs(direction);
          // Of cautious decay with a direction that rounding may turn round, nothing is asked.
          if (o.cautious && std::fabs(x[i]) <= error[i] && norm != 0) continue;
          ASSERT_NEAR(after.get(after.param, k, r, c), expected,
                      1.01 * after.param.rounding(expected) +
                          4 * u * (std::fabs(p) + step * std::fabs(direction)) + step * slack)
              << "matrix " << k << " row " << r << " column " << c;
        }
      }
    }
  }
  check_gaps(before, after);
}

}  // namespace erlangen::testing
