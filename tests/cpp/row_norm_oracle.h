// What the tests of the row-norm kernels share: numbers in storage, a problem with its buffers, and
// the formula in double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/row_norm.h"

namespace erlangen::testing {

using kernels::DType;
using kernels::RowNormOptions;
using kernels::RowNormTensor;

// ---- Numbers in storage. Half precision by arithmetic, not by bit tricks as in the kernels.

struct Format {
  int bytes;
  int fraction_bits;
  int min_exponent;  // of normal numbers
  int bias;
};

inline Format format(DType dtype) {
  switch (dtype) {
    case DType::float32: return {4, 23, -126, 127};
    case DType::float64: return {8, 52, -1022, 1023};
    case DType::bfloat16: return {2, 7, -126, 127};
    case DType::float16: return {2, 10, -14, 15};
  }
  return {};
}

inline double decode_half(DType dtype, uint16_t bits) {
  const Format f = format(dtype);
  const int fraction = bits & ((1 << f.fraction_bits) - 1);
  const int exponent = (bits & 0x7fff) >> f.fraction_bits;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 2 * f.bias + 1) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, f.min_exponent - f.fraction_bits);
  return sign * std::ldexp((1 << f.fraction_bits) + fraction, exponent - f.bias - f.fraction_bits);
}

// To nearest, ties to even (the rounding mode of nearbyint). Counted from zero in units of the last
// place, the numbers of a format are its bit patterns.
inline uint16_t encode_half(DType dtype, double x) {
  const Format f = format(dtype);
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (x == 0) return sign;
  const int exponent = std::max(std::ilogb(x), f.min_exponent);
  const double units = std::nearbyint(std::ldexp(x, f.fraction_bits - exponent));
  const int infinity = (2 * f.bias + 1) << f.fraction_bits;
  const double pattern =
      units + std::ldexp(static_cast<double>(exponent - f.min_exponent), f.fraction_bits);
  return sign | static_cast<uint16_t>(std::min<double>(pattern, infinity));
}

// rows x stride elements from `offset` on; what lies between the rows must stay as it is.
struct Buffer {
  DType dtype;
  int64_t stride;
  int64_t offset;
  std::vector<char> bytes;
  // Rows in blocks and in two runs, as kernels::RowStrides says.
  int64_t inner = INT64_MAX, run = INT64_MAX;
  int64_t outer = 0, segment = 0;

  Buffer(DType dtype, int64_t rows, int64_t stride, int64_t offset = 0)
      : dtype(dtype), stride(stride), offset(offset) {
    bytes.resize((rows * stride + offset) * format(dtype).bytes);
  }
  // rows x cols in blocks of `inner` rows. With two segments all first halves of a block come
  // before all second ones. Some elements of padding follow each run and each block.
  Buffer(DType dtype, int64_t rows, int64_t inner, int64_t cols, int64_t segments, int64_t padding,
         int64_t offset)
      : dtype(dtype),
        stride(cols / segments + padding),
        offset(offset),
        inner(std::max<int64_t>(inner, 1)),
        run(cols / segments),
        outer(segments * inner * stride + (inner < rows ? padding : 0)),
        segment(inner * stride) {
    bytes.resize((rows / this->inner * outer + offset) * format(dtype).bytes);
  }
  int64_t index(int64_t row, int64_t col) const {
    return row / inner * outer + row % inner * stride + (col < run ? col : col - run + segment);
  }
  kernels::RowStrides strides() const { return {outer, stride, segment}; }
  int64_t elements() const {
    return static_cast<int64_t>(bytes.size()) / format(dtype).bytes - offset;
  }
  char* data() { return bytes.data() + offset * format(dtype).bytes; }
  double get(int64_t row, int64_t col) { return at(index(row, col)); }
  double at(int64_t i) {
    char* p = data() + i * format(dtype).bytes;
    if (dtype == DType::float64) return *reinterpret_cast<double*>(p);
    if (dtype == DType::float32) return *reinterpret_cast<float*>(p);
    return decode_half(dtype, *reinterpret_cast<uint16_t*>(p));
  }
  void set(int64_t row, int64_t col, double x) { put(index(row, col), x); }
  void put(int64_t i, double x) {
    char* p = data() + i * format(dtype).bytes;
    if (dtype == DType::float64) {
      *reinterpret_cast<double*>(p) = x;
    } else if (dtype == DType::float32) {
      *reinterpret_cast<float*>(p) = static_cast<float>(x);
    } else {
      *reinterpret_cast<uint16_t*>(p) = encode_half(dtype, x);
    }
  }
  // Half a unit in the last place of a number of this size.
  double rounding(double x) const {
    const Format f = format(dtype);
    const int exponent = x == 0 ? f.min_exponent : std::max(std::ilogb(x), f.min_exponent);
    return std::ldexp(0.5, exponent - f.fraction_bits);
  }
};

struct Problem {
  int64_t rows;
  int64_t inner;
  RowNormOptions options;
  Buffer param, grad, momentum;
  double decay = 0.98;
  double step_size = 0.25;
  const float* lr_pointer = nullptr;
  const float* weight_decay_pointer = nullptr;
  int64_t position = 0, noise_step = 1;

  // The three buffers are padded differently. `inner` 0: all rows are one block.
  Problem(int64_t rows, const RowNormOptions& options, int64_t padding = 0, int64_t offset = 0,
          int64_t inner = 0)
      : rows(rows),
        inner(inner ? inner : rows),
        options(options),
        param(options.dtype, rows, this->inner, options.cols, options.segments, padding, offset),
        grad(options.dtype, rows, this->inner, options.cols, options.segments, 2 * padding, offset),
        momentum(options.momentum_dtype, rows, this->inner, options.cols, options.segments,
                 3 * padding, offset) {}

  // Fresh numbers everywhere, the gaps included.
  void draw(unsigned seed, double scale) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < param.elements(); ++i) param.put(i, normal(generator));
    for (int64_t i = 0; i < grad.elements(); ++i) grad.put(i, scale * normal(generator));
    for (int64_t i = 0; i < momentum.elements(); ++i) momentum.put(i, scale * normal(generator));
  }
  void clear(Buffer* buffer, int64_t row) const {
    for (int64_t c = 0; c < options.cols; ++c) buffer->set(row, c, 0);
  }
  // Where the elements lie in a parameter without padding.
  Buffer contiguous() const {
    return Buffer(options.dtype, rows, inner, options.cols, options.segments, 0, 0);
  }
  RowNormTensor tensor() {
    return {.param = param.data(),
            .grad = grad.data(),
            .momentum = momentum.data(),
            .rows = rows,
            .inner = inner,
            .param_strides = param.strides(),
            .grad_strides = grad.strides(),
            .momentum_strides = momentum.strides(),
            .lr = 1,
            .lr_pointer = lr_pointer,
            .weight_decay = 1 - decay,
            .weight_decay_pointer = weight_decay_pointer,
            .factor = step_size,
            .element_strides = contiguous().strides(),
            .element_offset = 0,
            .position = position,
            .step = noise_step,
            .step_pointer = nullptr};
  }
};

inline RowNormOptions make_options(int64_t cols, DType dtype = DType::float32,
                                   DType momentum_dtype = DType::float32) {
  RowNormOptions options = {};
  options.cols = cols;
  options.segments = 1;
  options.dtype = dtype;
  options.momentum_dtype = momentum_dtype;
  options.momentum = 0.9;
  return options;
}

struct Types {
  DType dtype, momentum_dtype;
};
inline const std::vector<Types> kTypes = {
    {DType::float32, DType::float32},   {DType::float32, DType::bfloat16},
    {DType::float64, DType::float64},   {DType::bfloat16, DType::float32},
    {DType::bfloat16, DType::bfloat16}, {DType::float16, DType::float32},
    {DType::float16, DType::bfloat16}};

// ---- Against the oracle

// Compares a step from `before` to `problem` with the formula in double.
inline void check_against_oracle(Problem before, Problem problem) {
  const RowNormOptions& o = problem.options;
  const double beta = o.momentum;
  const double eps = o.dtype == DType::float64 ? 1e-13 : 1e-5;
  // To nearest: half a unit in the last place. Up or down at random: less than a whole one.
  const double roundings = o.stochastic_rounding && o.dtype == DType::bfloat16 ? 2 : 1.01;
  const double unscale = (o.maximize ? -1 : 1) / (o.grad_scale ? *o.grad_scale : 1.0);
  for (int64_t r = 0; r < problem.rows; ++r) {
    std::vector<double> x(o.cols);
    std::vector<double> x_error(o.cols);
    double squares = 0;
    bool has_gradient = false;
    for (int64_t c = 0; c < o.cols; ++c) {
      const double g = unscale * before.grad.get(r, c);
      const double old = before.momentum.get(r, c);
      const double m = beta * old + (1 - beta) * g;
      ASSERT_NEAR(problem.momentum.get(r, c), m,
                  1.01 * problem.momentum.rounding(m) +
                      eps * 1e-1 * (std::fabs(beta * old) + std::fabs(g)));
      x[c] = o.nesterov ? beta * m + (1 - beta) * g : m;
      x_error[c] = eps * (std::fabs(beta * old) + std::fabs(g));
      squares += x[c] * x[c];
      has_gradient |= g != 0;
    }
    const bool moves = has_gradient || !o.gradient_support;
    for (int64_t c = 0; c < o.cols; ++c) {
      const double p = before.param.get(r, c);
      const double u = squares == 0 ? 0 : x[c] / std::sqrt(squares);
      // Where rounding may have turned x round, decaying and not decaying are both right.
      bool decays = !o.cautious || p * u > 0;
      const double p_new = problem.param.get(r, c);
      if (o.cautious && std::fabs(x[c]) <= x_error[c]) {
        decays = std::fabs(p_new - problem.decay * p) < std::fabs(p_new - p);
      }
      const double expected = (decays ? problem.decay : 1) * p - problem.step_size * u;
      if (moves) {
        ASSERT_NEAR(problem.param.get(r, c), expected,
                    roundings * problem.param.rounding(expected) + eps * problem.step_size)
            << "row " << r << " column " << c;
      } else {
        ASSERT_EQ(problem.param.get(r, c), p);
      }
    }
  }
  for (const auto buffer : {&Problem::param, &Problem::momentum}) {
    std::vector<bool> own((problem.*buffer).elements());
    for (int64_t r = 0; r < problem.rows; ++r) {
      for (int64_t c = 0; c < o.cols; ++c) own[(problem.*buffer).index(r, c)] = true;
    }
    for (size_t i = 0; i < own.size(); ++i) {
      if (!own[i]) {
        ASSERT_EQ((problem.*buffer).at(i), (before.*buffer).at(i)) << "gap at " << i;
      }
    }
  }
  ASSERT_EQ(problem.grad.bytes, before.grad.bytes);
}

}  // namespace erlangen::testing
