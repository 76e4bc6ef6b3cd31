// The row-norm kernel on the CPU, without torch, against an oracle in double.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cpu/row_norm.h"

namespace {

using erlangen::kernels::DType;
using erlangen::kernels::RowNormOptions;
using erlangen::kernels::RowNormTensor;
using erlangen::kernels::cpu::row_norm_step;

// ---- Numbers in storage. Half precision by arithmetic, not by bit tricks as in the kernel.

struct Format {
  int bytes;
  int fraction_bits;
  int min_exponent;  // of normal numbers
  int bias;
};

Format format(DType dtype) {
  switch (dtype) {
    case DType::float32: return {4, 23, -126, 127};
    case DType::float64: return {8, 52, -1022, 1023};
    case DType::bfloat16: return {2, 7, -126, 127};
    case DType::float16: return {2, 10, -14, 15};
  }
  return {};
}

double decode_half(DType dtype, uint16_t bits) {
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
uint16_t encode_half(DType dtype, double x) {
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

  Buffer(DType dtype, int64_t rows, int64_t stride, int64_t offset = 0)
      : dtype(dtype), stride(stride), offset(offset) {
    bytes.resize((rows * stride + offset) * format(dtype).bytes);
  }
  char* data() { return bytes.data() + offset * format(dtype).bytes; }
  double get(int64_t row, int64_t col) { return at(row * stride + col); }
  double at(int64_t i) {
    char* p = data() + i * format(dtype).bytes;
    if (dtype == DType::float64) return *reinterpret_cast<double*>(p);
    if (dtype == DType::float32) return *reinterpret_cast<float*>(p);
    return decode_half(dtype, *reinterpret_cast<uint16_t*>(p));
  }
  void set(int64_t row, int64_t col, double x) {
    char* p = data() + (row * stride + col) * format(dtype).bytes;
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
  RowNormOptions options;
  Buffer param, grad, momentum;
  double decay = 0.98;
  double step_size = 0.25;

  Problem(int64_t rows, const RowNormOptions& options, int64_t padding = 0, int64_t offset = 0)
      : rows(rows),
        options(options),
        param(options.dtype, rows, options.cols + padding, offset),
        grad(options.dtype, rows, options.cols + 2 * padding, offset),
        momentum(options.momentum_dtype, rows, options.cols + 3 * padding, offset) {}

  // Fresh numbers everywhere, the gaps included.
  void draw(unsigned seed, double scale) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < param.stride; ++c) param.set(r, c, normal(generator));
      for (int64_t c = 0; c < grad.stride; ++c) grad.set(r, c, scale * normal(generator));
      for (int64_t c = 0; c < momentum.stride; ++c) momentum.set(r, c, scale * normal(generator));
    }
  }
  void clear(Buffer* buffer, int64_t row) const {
    for (int64_t c = 0; c < options.cols; ++c) buffer->set(row, c, 0);
  }
  RowNormTensor tensor() {
    return {param.data(), grad.data(),     momentum.data(), rows,     param.stride,
            grad.stride,  momentum.stride, decay,           step_size};
  }
  void step() { row_norm_step(tensor(), options, 0, rows); }
};

RowNormOptions make_options(int64_t cols, DType dtype = DType::float32,
                            DType momentum_dtype = DType::float32) {
  return {cols, dtype, momentum_dtype, /*momentum=*/0.9, false, false, false};
}

struct Types {
  DType dtype, momentum_dtype;
};
const std::vector<Types> kTypes = {
    {DType::float32, DType::float32},   {DType::float32, DType::bfloat16},
    {DType::float64, DType::float64},   {DType::bfloat16, DType::float32},
    {DType::bfloat16, DType::bfloat16}, {DType::float16, DType::float32},
    {DType::float16, DType::bfloat16}};

// ---- Against the oracle

// Steps `problem` and compares with the formula in double. Rows with zero gradient or zero
// everything are among them.
void check_against_oracle(Problem problem) {
  const RowNormOptions& o = problem.options;
  Problem before = problem;
  problem.step();
  const double beta = o.momentum;
  const double eps = o.dtype == DType::float64 ? 1e-13 : 1e-5;
  for (int64_t r = 0; r < problem.rows; ++r) {
    std::vector<double> x(o.cols);
    double squares = 0;
    bool has_gradient = false;
    for (int64_t c = 0; c < o.cols; ++c) {
      const double g = (o.maximize ? -1 : 1) * before.grad.get(r, c);
      const double old = before.momentum.get(r, c);
      const double m = beta * old + (1 - beta) * g;
      ASSERT_NEAR(problem.momentum.get(r, c), m,
                  1.01 * problem.momentum.rounding(m) +
                      eps * 1e-1 * (std::fabs(beta * old) + std::fabs(g)));
      x[c] = o.nesterov ? beta * m + (1 - beta) * g : m;
      squares += x[c] * x[c];
      has_gradient |= g != 0;
    }
    const bool moves = has_gradient || !o.gradient_support;
    for (int64_t c = 0; c < o.cols; ++c) {
      const double p = before.param.get(r, c);
      const double u = squares == 0 ? 0 : x[c] / std::sqrt(squares);
      const double expected = problem.decay * p - problem.step_size * u;
      if (moves) {
        ASSERT_NEAR(problem.param.get(r, c), expected,
                    1.01 * problem.param.rounding(expected) + eps * problem.step_size)
            << "row " << r << " column " << c;
      } else {
        ASSERT_EQ(problem.param.get(r, c), p);
      }
    }
    for (int64_t c = o.cols; c < problem.param.stride; ++c) {
      ASSERT_EQ(problem.param.get(r, c), before.param.get(r, c));
    }
    for (int64_t c = o.cols; c < problem.momentum.stride; ++c) {
      ASSERT_EQ(problem.momentum.get(r, c), before.momentum.get(r, c));
    }
  }
  ASSERT_EQ(problem.grad.bytes, before.grad.bytes);
}

TEST(RowNormKernel, MatchesOracle) {
  unsigned seed = 0;
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const int64_t cols : {1, 2, 7, 31, 32, 33, 64, 65, 100, 1023, 1024, 1025, 4096, 4129}) {
      for (const double scale :
           narrow ? std::vector<double>{1e-2, 1, 1e2} : std::vector<double>{1e-30, 1, 1e30}) {
        for (int flags = 0; flags < 8; ++flags) {
          RowNormOptions options = make_options(cols, types.dtype, types.momentum_dtype);
          options.nesterov = flags & 1;
          options.maximize = flags & 2;
          options.gradient_support = flags & 4;
          const bool strided = seed % 2;
          Problem problem(4, options, strided ? 3 : 0, strided ? 1 : 0);
          problem.draw(++seed, scale);
          problem.clear(&problem.grad, 1);
          problem.clear(&problem.grad, 2);
          problem.clear(&problem.momentum, 2);
          SCOPED_TRACE(testing::Message()
                       << "dtype " << static_cast<int>(types.dtype) << " momentum "
                       << static_cast<int>(types.momentum_dtype) << " cols " << cols << " scale "
                       << scale << " flags " << flags);
          check_against_oracle(problem);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(RowNormKernel, ZeroStepLeavesParameters) {
  Problem problem(3, make_options(100));
  problem.draw(1, 1);
  problem.decay = 1;
  problem.step_size = 0;
  const Problem before = problem;
  problem.step();
  EXPECT_EQ(problem.param.bytes, before.param.bytes);
}

TEST(RowNormKernel, NotANumberStaysInItsRow) {
  for (const float bad : {NAN, INFINITY}) {
    for (const bool all : {false, true}) {
      Problem problem(3, make_options(100));
      problem.draw(1, 1);
      for (int64_t c = all ? 0 : 50; c < (all ? 100 : 51); ++c) problem.grad.set(1, c, bad);
      problem.step();
      EXPECT_TRUE(std::isnan(problem.param.get(1, 50)));
      for (int64_t c = 0; c < 100; ++c) {
        EXPECT_TRUE(std::isfinite(problem.param.get(0, c)));
        EXPECT_TRUE(std::isfinite(problem.param.get(2, c)));
      }
    }
  }
}

// ---- To the bit

TEST(RowNormKernel, RangesGiveTheSameBits) {
  for (const Types& types : kTypes) {
    Problem whole(7, make_options(1027, types.dtype, types.momentum_dtype), 5, 1);
    whole.draw(3, 1);
    const Problem start = whole;
    whole.step();
    for (int64_t k = 0; k <= 7; ++k) {
      Problem parts = start;
      row_norm_step(parts.tensor(), parts.options, 0, k);
      row_norm_step(parts.tensor(), parts.options, k, 7);
      EXPECT_EQ(parts.param.bytes, whole.param.bytes) << "split at " << k;
      EXPECT_EQ(parts.momentum.bytes, whole.momentum.bytes) << "split at " << k;
    }
  }
}

TEST(RowNormKernel, ScaleOfTheGradientDoesNotMatter) {
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const int exponent : narrow ? std::vector<int>{-1, 3} : std::vector<int>{-90, -1, 3, 90}) {
      Problem problem(3, make_options(333, types.dtype, types.momentum_dtype));
      problem.draw(5, 1);
      Problem scaled = problem;
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t c = 0; c < 333; ++c) {
          scaled.grad.set(r, c, std::ldexp(problem.grad.get(r, c), exponent));
          scaled.momentum.set(r, c, std::ldexp(problem.momentum.get(r, c), exponent));
        }
      }
      problem.step();
      scaled.step();
      EXPECT_EQ(problem.param.bytes, scaled.param.bytes) << "2^" << exponent;
    }
  }
}

TEST(RowNormKernel, MaximizeIsTheNegatedGradient) {
  for (const bool nesterov : {false, true}) {
    Problem problem(3, make_options(333));
    problem.options.nesterov = nesterov;
    problem.draw(5, 1);
    Problem negated = problem;
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t c = 0; c < 333; ++c) negated.grad.set(r, c, -problem.grad.get(r, c));
    }
    problem.options.maximize = true;
    problem.step();
    negated.step();
    EXPECT_EQ(problem.param.bytes, negated.param.bytes);
    EXPECT_EQ(problem.momentum.bytes, negated.momentum.bytes);
  }
}

// ---- Half precision: every pattern is read and written back, every midpoint is rounded to even

TEST(RowNormKernel, HalfPatternsSurvive) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    Problem problem(1, make_options(65536, dtype));
    problem.decay = 1;
    problem.step_size = 0;
    auto* bits = reinterpret_cast<uint16_t*>(problem.param.data());
    for (int i = 0; i < 65536; ++i) bits[i] = static_cast<uint16_t>(i);
    problem.step();
    for (int i = 0; i < 65536; ++i) {
      const double x = decode_half(dtype, static_cast<uint16_t>(i));
      if (std::isfinite(x)) {
        ASSERT_EQ(bits[i], i);
      } else {
        ASSERT_FALSE(std::isfinite(decode_half(dtype, bits[i]))) << i;
      }
    }
  }
}

TEST(RowNormKernel, HalfRoundsToNearestEven) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    // One column and no momentum: parameter 0 becomes step_size, exactly until it is rounded.
    Problem problem(1, make_options(1, dtype));
    problem.options.momentum = 0;
    problem.grad.set(0, 0, -1);
    const int infinity = dtype == DType::float16 ? 0x7c00 : 0x7f80;
    for (int i = 0; i < infinity; ++i) {
      const double low = decode_half(dtype, static_cast<uint16_t>(i));
      const double high = i + 1 == infinity ? 2 * low - decode_half(dtype, i - 1)
                                            : decode_half(dtype, static_cast<uint16_t>(i + 1));
      const auto middle = static_cast<float>((low + high) / 2);
      for (const float x :
           {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, INFINITY)}) {
        problem.param.set(0, 0, 0);
        problem.step_size = x;
        problem.step();
        uint16_t bits;
        std::memcpy(&bits, problem.param.data(), sizeof(bits));
        ASSERT_EQ(bits, encode_half(dtype, x)) << x;
      }
    }
  }
}

}  // namespace
