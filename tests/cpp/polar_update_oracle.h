// What the tests of the kernels around the polar iteration share: problems with their buffers, and
// the formulas in plain loops.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/polar_update.h"
#include "row_norm_oracle.h"

namespace erlangen::testing {

using kernels::PolarTensor;
using kernels::PolarUpdateOptions;

struct PolarTypes {
  DType dtype, momentum_dtype, product_dtype;
};

inline std::vector<PolarTypes> polar_types() {
  std::vector<PolarTypes> result;
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    for (const DType product : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
      if (dtype == DType::float64) {
        result.push_back({dtype, dtype, product});
      } else if (product != DType::float64) {
        result.push_back({dtype, DType::float32, product});
        result.push_back({dtype, DType::bfloat16, product});
      }
    }
  }
  return result;
}

inline PolarUpdateOptions polar_options(int64_t matrices, int64_t rows, int64_t cols,
                                        const PolarTypes& types) {
  PolarUpdateOptions options = {};
  options.matrices = matrices, options.rows = rows, options.cols = cols;
  options.segments = 1;
  options.dtype = types.dtype;
  options.momentum_dtype = types.momentum_dtype;
  options.product_dtype = types.product_dtype;
  options.momentum = 0.95;
  options.scale = 1.7;
  return options;
}

struct PolarShape {
  int64_t matrices, rows, cols;
};

// With flags as the seed has it: over the seeds all of them meet.
inline PolarUpdateOptions polar_options(const PolarShape& shape, const PolarTypes& types,
                                        unsigned seed) {
  PolarUpdateOptions options = polar_options(shape.matrices, shape.rows, shape.cols, types);
  options.transposed = seed & 1;
  options.nesterov = seed & 2;
  options.maximize = seed & 4;
  options.cautious = seed & 8;
  options.stochastic_rounding = seed & 16;
  options.seed = 0xfedcba9876543210;
  if (shape.cols % 2 == 0 && seed % 3 == 0) options.segments = 2;
  if (seed % 5 == 0) options.eps = 1e-7;
  if (seed % 11 == 0) options.eps = 1e3;
  const DType compute = types.dtype == DType::float64 ? DType::float64 : DType::float32;
  options.unscaled = types.product_dtype == compute && seed % 7 == 0;
  return options;
}

// One parameter. The buffers are padded differently.
struct PolarParameter {
  Buffer param, grad, momentum;

  PolarParameter(const PolarUpdateOptions& o, int64_t padding, int64_t offset)
      : param(o.dtype, o.matrices * o.rows, o.rows, o.cols, o.segments, padding, offset),
        grad(o.dtype, o.matrices * o.rows, o.rows, o.cols, o.segments, 2 * padding, offset),
        momentum(o.momentum_dtype, o.matrices * o.rows, o.rows, o.cols, o.segments, 3 * padding,
                 offset) {}
};

// The parameters of one call, and their batch, of which everything else is NaN.
struct PolarProblem {
  PolarUpdateOptions options;
  std::vector<PolarParameter> parameters;
  std::vector<uint64_t> storage;
  double lr = 0.25, weight_decay = 0.1, factor = 0.5;
  int64_t step = 3;

  // x's rows are multiples of `x_unit` elements apart.
  PolarProblem(int64_t count, const PolarUpdateOptions& given, int64_t padding = 0,
               int64_t offset = 0, int64_t x_unit = 1)
      : options(given), parameters(count, PolarParameter(given, padding, offset)) {
    options.param_strides = parameters[0].param.strides();
    options.grad_strides = parameters[0].grad.strides();
    options.momentum_strides = parameters[0].momentum.strides();
    options.element_strides = contiguous().strides();
    options.x_row = (l() + x_unit - 1) / x_unit * x_unit;
    options.x_matrix = k() * options.x_row + x_unit - 1;
    options.x_matrix = (options.x_matrix + x_unit - 1) / x_unit * x_unit;
    storage.assign(count * options.matrices * options.x_matrix + 2, ~uint64_t{0});
  }
  int64_t k() const { return kernels::polar_update::x_rows(options); }
  int64_t l() const { return kernels::polar_update::x_cols(options); }
  int64_t matrices() const { return static_cast<int64_t>(parameters.size()) * options.matrices; }
  Buffer contiguous() const {
    return Buffer(DType::bfloat16, options.matrices * options.rows, options.rows, options.cols,
                  options.segments, 0, 0);
  }

  // The addresses are those of this copy of the problem.
  PolarUpdateOptions call() {
    PolarUpdateOptions result = options;
    const auto address = reinterpret_cast<uintptr_t>(storage.data());
    result.x = reinterpret_cast<char*>(storage.data()) + (16 - address % 16) % 16;
    return result;
  }
  PolarTensor tensor(int64_t i) {
    PolarTensor result = {};
    result.param = parameters[i].param.data();
    result.grad = parameters[i].grad.data();
    result.momentum = parameters[i].momentum.data();
    result.first = i * options.matrices;
    result.lr = lr;
    result.weight_decay = weight_decay;
    result.factor = factor;
    result.position = 5 + i;
    result.step = step;
    return result;
  }
  std::vector<PolarTensor> tensors() {
    std::vector<PolarTensor> result;
    for (size_t i = 0; i < parameters.size(); ++i) result.push_back(tensor(i));
    return result;
  }

  // x of a matrix of the batch, by rows and columns as they lie in memory.
  int64_t x_index(int64_t matrix, int64_t row, int64_t col) const {
    return matrix * options.x_matrix +
           (options.transposed ? col * options.x_row + row : row * options.x_row + col);
  }
  double x(int64_t matrix, int64_t row, int64_t col) { return x_at(x_index(matrix, row, col)); }
  double x_at(int64_t i) {
    const char* p = static_cast<const char*>(call().x) + i * format(options.product_dtype).bytes;
    if (options.product_dtype == DType::float64) return *reinterpret_cast<const double*>(p);
    if (options.product_dtype == DType::float32) return *reinterpret_cast<const float*>(p);
    return decode_half(options.product_dtype, *reinterpret_cast<const uint16_t*>(p));
  }
  void set_x(int64_t matrix, int64_t row, int64_t col, double value) {
    char* p = static_cast<char*>(call().x) +
              x_index(matrix, row, col) * format(options.product_dtype).bytes;
    if (options.product_dtype == DType::float64) {
      *reinterpret_cast<double*>(p) = value;
    } else if (options.product_dtype == DType::float32) {
      *reinterpret_cast<float*>(p) = static_cast<float>(value);
    } else {
      *reinterpret_cast<uint16_t*>(p) = encode_half(options.product_dtype, value);
    }
  }

  // Every element of every buffer; gradients and momenta times `scale`.
  void draw(unsigned seed, double scale) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    for (PolarParameter& p : parameters) {
      for (Buffer* buffer : {&p.param, &p.grad, &p.momentum}) {
        const double size = buffer == &p.param ? 1 : scale;
        for (int64_t i = 0; i < buffer->elements(); ++i) buffer->put(i, size * normal(generator));
      }
    }
  }
  // Of a size as the seed has it, from what is small for the type to what is large.
  void draw(unsigned seed) {
    const bool narrow = options.dtype == DType::float16;
    const double scales[] = {narrow ? 1e-2 : 1e-30, 1, narrow ? 1e2 : 1e30};
    draw(seed, scales[seed % 3]);
  }
  void draw_x(unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    each([&](int64_t i, int64_t k, int64_t r, int64_t c) {
      set_x(i * options.matrices + k, r, c, normal(generator));
    });
  }
  // visitor(parameter, its matrix, row, column)
  template <typename Visitor>
  void each(Visitor&& visitor) {
    for (int64_t i = 0; i < static_cast<int64_t>(parameters.size()); ++i) {
      for (int64_t k = 0; k < options.matrices; ++k) {
        for (int64_t r = 0; r < options.rows; ++r) {
          for (int64_t c = 0; c < options.cols; ++c) visitor(i, k, r, c);
        }
      }
    }
  }
};

inline double rounded(DType dtype, double x) {
  switch (dtype) {
    case DType::float64: return x;
    case DType::float32: return static_cast<float>(x);
    default: return decode_half(dtype, encode_half(dtype, static_cast<float>(x)));
  }
}

// Momenta to the bit, and x: to the bit where it is unscaled, else its norm may be off by that
// share. Arithmetic without contraction.
template <typename Compute>
void check_prepared_in(PolarProblem before, PolarProblem after, double norm_error) {
  const PolarUpdateOptions& o = before.options;
  const auto s = kernels::norm_step::scalars<Compute>(o);
  const int largest = sizeof(Compute) == 8 ? 1022 : 126;
  const double u = std::numeric_limits<Compute>::epsilon() / 2;
  Buffer product(o.product_dtype, 1, 1);
  int64_t written = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(before.parameters.size()); ++i) {
    for (int64_t k = 0; k < o.matrices; ++k) {
      std::vector<Compute> z;
      Compute most = 0;
      for (int64_t r = 0; r < o.rows; ++r) {
        for (int64_t c = 0; c < o.cols; ++c) {
          PolarParameter& p = before.parameters[i];
          const int64_t row = k * o.rows + r;
          const Compute g = static_cast<Compute>(p.grad.get(row, c));
          const Compute old = static_cast<Compute>(p.momentum.get(row, c));
          const Compute m = s.beta * old + s.gradient_weight * g;
          z.push_back(o.nesterov ? s.beta * m + s.gradient_weight * g : m);
          most = std::max(most, std::fabs(z.back()));
          ASSERT_EQ(after.parameters[i].momentum.get(row, c), rounded(o.momentum_dtype, m));
          ASSERT_EQ(after.parameters[i].param.get(row, c), p.param.get(row, c));
        }
      }
      int e = 0;
      std::frexp(most, &e);
      e = std::clamp(e, -largest, largest);
      long double squares = 0;  // so that its own errors are no matter
      const std::vector<Compute> unscaled = z;
      for (Compute& value : z) {
        value = static_cast<Compute>(rounded(o.product_dtype, std::ldexp(value, -e)));
        squares += static_cast<long double>(value) * value;
      }
      const long double norm =
          std::max(std::sqrt(squares), static_cast<long double>(std::ldexp(o.eps, -e)));
      for (int64_t r = 0; r < o.rows; ++r) {
        for (int64_t c = 0; c < o.cols; ++c) {
          const double expected = norm == 0 ? 0 : static_cast<double>(z[r * o.cols + c] / norm);
          const double found = after.x(i * o.matrices + k, r, c);
          ++written;
          if (o.unscaled) {
            ASSERT_EQ(found, unscaled[r * o.cols + c]);
            continue;
          }
          // The norm's error; root, reciprocal and product; and the rounding to storage.
          ASSERT_NEAR(
              found, expected,
              (norm_error + 4 * u) * std::fabs(expected) + 1.01 * product.rounding(expected))
              << "matrix " << k << " row " << r << " column " << c;
        }
      }
    }
  }
  // What lies between x's rows and matrices is still NaN.
  int64_t numbers = 0;
  for (int64_t i = 0; i < before.matrices() * o.x_matrix; ++i) {
    numbers += !std::isnan(after.x_at(i));
  }
  ASSERT_EQ(numbers, written);
}

inline void check_prepared(const PolarProblem& before, const PolarProblem& after,
                           double norm_error) {
  before.options.dtype == DType::float64 ? check_prepared_in<double>(before, after, norm_error)
                                         : check_prepared_in<float>(before, after, norm_error);
}

// Parameters, to the bit.
template <typename Compute>
void check_finished_in(PolarProblem before, PolarProblem after) {
  const PolarUpdateOptions& o = before.options;
  const Compute scale = static_cast<Compute>(o.scale);
  const Compute length = static_cast<Compute>(before.lr * before.factor);
  const Compute all_lost = static_cast<Compute>(before.lr * before.weight_decay);
  const Buffer contiguous = before.contiguous();
  before.each([&](int64_t i, int64_t k, int64_t r, int64_t c) {
    const int64_t row = k * o.rows + r;
    const Compute p = static_cast<Compute>(before.parameters[i].param.get(row, c));
    const Compute y = static_cast<Compute>(before.x(i * o.matrices + k, r, c)) * scale;
    const Compute lost = o.cautious && !((p > 0 && y > 0) || (p < 0 && y < 0)) ? 0 : all_lost;
    const Compute next = p - (lost * p + length * y);
    double expected = rounded(o.dtype, next);
    if (o.stochastic_rounding && o.dtype == DType::bfloat16) {
      const int64_t element = o.element_offset + contiguous.index(row, c);
      uint32_t words[4] = {static_cast<uint32_t>(element / 4), 0,
                           static_cast<uint32_t>(before.step), static_cast<uint32_t>(5 + i)};
      kernels::philox(words, o.seed);
      const float x = static_cast<float>(next);
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      expected = decode_half(DType::bfloat16,
                             static_cast<uint16_t>((bits + (words[element % 4] & 0xffff)) >> 16));
    }
    EXPECT_EQ(after.parameters[i].param.get(row, c), expected)
        << "parameter " << i << " matrix " << k << " row " << r << " column " << c;
  });
}

inline void check_finished(const PolarProblem& before, const PolarProblem& after) {
  before.options.dtype == DType::float64 ? check_finished_in<double>(before, after)
                                         : check_finished_in<float>(before, after);
  // Nothing beside the rows has changed, and nothing of the momenta.
  for (size_t i = 0; i < before.parameters.size(); ++i) {
    EXPECT_EQ(before.parameters[i].momentum.bytes, after.parameters[i].momentum.bytes);
    PolarProblem rest = before, changed = after;
    rest.each([&](int64_t p, int64_t k, int64_t r, int64_t c) {
      if (p != static_cast<int64_t>(i)) return;
      rest.parameters[i].param.set(k * rest.options.rows + r, c, 0);
      changed.parameters[i].param.set(k * rest.options.rows + r, c, 0);
    });
    EXPECT_EQ(rest.parameters[i].param.bytes, changed.parameters[i].param.bytes);
  }
}

}  // namespace erlangen::testing
