// The centered row-norm step in double, and what must hold to the bit; for the tests of the CPU and
// of the CUDA kernels. Problems are those of row_norm_oracle.h, whose blocks are the matrices.

#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "kernels/centered_row_norm.h"
#include "row_norm_oracle.h"

namespace erlangen::testing {

// Takes a step, all means left in `scratch`, which has centered_scratch_bytes.
using CenteredStep = std::function<void(Problem*, std::vector<char>* scratch)>;

inline void centered_step(const CenteredStep& step, Problem* problem) {
  std::vector<char> scratch;
  step(problem, &scratch);
}

// Scratch memory full of NaN, aligned.
inline void* poisoned(std::vector<char>* scratch, const std::vector<RowNormTensor>& tensors,
                      const RowNormOptions& options) {
  int64_t bytes = 128;
  for (const RowNormTensor& t : tensors) bytes += kernels::centered_scratch_bytes(t, options);
  scratch->assign(bytes, -1);
  const auto address = reinterpret_cast<uintptr_t>(scratch->data());
  return scratch->data() + (128 - address % 128) % 128;
}

// Compares a step from `before` to `problem` with the formula in double, whose every intermediate
// result may be off by what rounding allows.
inline void check_centered(Problem before, Problem problem) {
  const RowNormOptions& o = problem.options;
  const double beta = o.momentum;
  const double u = std::ldexp(1.0, o.dtype == DType::float64 ? -53 : -24);
  const double roundings = o.stochastic_rounding && o.dtype == DType::bfloat16 ? 2 : 1.01;
  const double unscale = (o.maximize ? -1 : 1) / (o.grad_scale ? *o.grad_scale : 1.0);
  const int64_t rows = problem.inner;
  for (int64_t first = 0; first < problem.rows; first += rows) {
    std::vector<std::vector<double>> x(rows, std::vector<double>(o.cols));
    std::vector<bool> moves(rows, !o.gradient_support);
    double largest = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < o.cols; ++c) {
        const double g = unscale * before.grad.get(first + r, c);
        const double old = before.momentum.get(first + r, c);
        const double m = beta * old + (1 - beta) * g;
        const double size = std::fabs(beta * old) + std::fabs((1 - beta) * g);
        ASSERT_NEAR(problem.momentum.get(first + r, c), m,
                    1.01 * problem.momentum.rounding(m) + 4 * u * size);
        x[r][c] = o.nesterov ? beta * m + (1 - beta) * g : m;
        largest = std::max(largest, 2 * size);
        if (g != 0) moves[r] = true;
      }
    }
    const auto project = [&] {
      for (int64_t c = 0; c < o.cols; ++c) {
        double sum = 0;
        for (int64_t r = 0; r < rows; ++r) sum += x[r][c];
        for (int64_t r = 0; r < rows; ++r) x[r][c] -= sum / static_cast<double>(rows);
      }
    };
    project();
    // x is off by 6 u, its mean by 7 u, their difference by 1 u more of the largest magnitude; a
    // unit row by twice that over its length, and by its own norm's: sums of squares in lanes of
    // 128, or in trees.
    const double root = std::sqrt(static_cast<double>(o.cols));
    std::vector<double> error(rows);
    double mean_error = 0;
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (const double d : x[r]) squares += d * d;
      const double length = std::sqrt(squares);
      const bool zero = length <= 1e-14 * largest * root;
      for (double& d : x[r]) d = zero ? 0 : d / length;
      error[r] = zero ? 0 : 28 * u * largest * root / length + 80 * u;
      mean_error += error[r] / static_cast<double>(rows);
    }
    project();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < o.cols; ++c) {
        const double p = before.param.get(first + r, c);
        if (!moves[r]) {
          ASSERT_EQ(problem.param.get(first + r, c), p);
          continue;
        }
        const double expected = problem.decay * p - problem.step_size * x[r][c];
        ASSERT_NEAR(problem.param.get(first + r, c), expected,
                    roundings * problem.param.rounding(expected) + 4 * u * std::fabs(p) +
                        problem.step_size * (error[r] + mean_error + 4 * u))
            << "row " << first + r << " column " << c;
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

// ---- What holds exactly

// Rows that are all the same have a mean which is the same: sums of floats in double are exact.
// Those of doubles are not, and directions of what is left cancel only to rounding.
inline void check_equal_rows_do_not_move(const CenteredStep& step) {
  for (const Types& types : kTypes) {
    for (const int64_t rows : {1, 3, 64, 200}) {
      Problem problem(2 * rows, make_options(70, types.dtype, types.momentum_dtype), 0, 0, rows);
      problem.draw(rows, 1);
      problem.decay = 1;
      for (int64_t r = 0; r < 2 * rows; ++r) {
        for (int64_t c = 0; c < 70; ++c) {
          problem.grad.set(r, c, problem.grad.get(r / rows * rows, c));
          problem.momentum.set(r, c, problem.momentum.get(r / rows * rows, c));
        }
      }
      Problem before = problem;
      centered_step(step, &problem);
      if (types.dtype == DType::float64) {
        for (int64_t i = 0; i < problem.param.elements(); ++i) {
          const double p = before.param.at(i);
          ASSERT_NEAR(problem.param.at(i), p,
                      problem.param.rounding(p) + problem.step_size * std::ldexp(2.0 * rows, -53));
        }
      } else {
        ASSERT_EQ(problem.param.bytes, before.param.bytes) << rows << " rows";
      }
      ASSERT_NE(problem.momentum.bytes, before.momentum.bytes);
    }
  }
}

// A shift of all rows by the same integers changes nothing, where all sums and means are exact.
inline void check_shifts_do_not_matter(const CenteredStep& step) {
  for (const int64_t rows : {2, 64, 256}) {
    Problem problem(rows, make_options(50));
    problem.options.momentum = 0;
    problem.draw(3, 1);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < 50; ++c) {
        problem.grad.set(r, c, std::nearbyint(100 * problem.grad.get(r, c)));
      }
    }
    Problem shifted = problem;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < 50; ++c)
        shifted.grad.set(r, c, problem.grad.get(r, c) + 37 * c - 800);
    }
    centered_step(step, &problem);
    centered_step(step, &shifted);
    ASSERT_EQ(problem.param.bytes, shifted.param.bytes) << rows << " rows";
  }
}

inline void check_scale_does_not_matter(const CenteredStep& step) {
  for (const int exponent : {-90, -1, 3, 90}) {
    Problem problem(130, make_options(100));
    problem.draw(5, 1);
    Problem scaled = problem;
    for (int64_t r = 0; r < 130; ++r) {
      for (int64_t c = 0; c < 100; ++c) {
        scaled.grad.set(r, c, std::ldexp(problem.grad.get(r, c), exponent));
        scaled.momentum.set(r, c, std::ldexp(problem.momentum.get(r, c), exponent));
      }
    }
    centered_step(step, &problem);
    centered_step(step, &scaled);
    ASSERT_EQ(problem.param.bytes, scaled.param.bytes) << "2^" << exponent;
  }
}

// A NaN spoils its matrix, and no other.
inline void check_nan_stays_in_its_matrix(const CenteredStep& step) {
  Problem problem(3 * 70, make_options(40), 0, 0, 70);
  problem.draw(1, 1);
  problem.grad.set(70 + 66, 5, NAN);
  centered_step(step, &problem);
  for (int64_t r = 0; r < 3 * 70; ++r) {
    for (int64_t c = 0; c < 40; ++c) {
      ASSERT_EQ(std::isnan(problem.param.get(r, c)), r / 70 == 1) << "row " << r;
    }
  }
}

// The mean over many rows is the true one, rounded: double sums of that many floats are off by less
// than a hundredth of a float's last place. Also where they are large.
inline void check_mean_of_many_rows(const CenteredStep& step, int64_t rows) {
  const int64_t cols = 3;
  for (const double size : {1.0, 1e30}) {
    Problem problem(rows, make_options(cols));
    problem.options.momentum = 0;
    problem.draw(1, 1);
    double sums[cols] = {};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        problem.grad.set(r, c, size * (1 + 0.01 * problem.grad.get(r, c)));
        sums[c] += problem.grad.get(r, c);
      }
    }
    std::vector<char> scratch;
    step(&problem, &scratch);
    void* memory = scratch.data() + (128 - reinterpret_cast<uintptr_t>(scratch.data()) % 128) % 128;
    const auto means =
        kernels::centered::scratch_of<float>(memory, problem.tensor(), problem.options, 0);
    for (int64_t c = 0; c < cols; ++c) {
      const double mean = sums[c] / static_cast<double>(rows);
      ASSERT_NEAR(means.mean[c], mean, 1.01 * problem.grad.rounding(mean));
    }
    for (int64_t i = 0; i < rows * cols; ++i) ASSERT_TRUE(std::isfinite(problem.param.at(i)));
  }
}

inline void check_overflow_changes_nothing(const CenteredStep& step) {
  for (const float found : {0.0f, 1.0f}) {
    Problem problem(70, make_options(100));
    problem.draw(1, 1);
    const Problem before = problem;
    problem.options.found_inf = &found;
    centered_step(step, &problem);
    EXPECT_EQ(problem.param.bytes == before.param.bytes, found != 0);
    EXPECT_EQ(problem.momentum.bytes == before.momentum.bytes, found != 0);
  }
}

// Numbers of few digits, so that their products are exact.
inline void check_reads_numbers_at_run_time(const CenteredStep& step) {
  const float lr = 0.125f, weight_decay = 0.5f;
  for (const Types& types : kTypes) {
    Problem read(70, make_options(100, types.dtype, types.momentum_dtype));
    read.draw(1, 1);
    Problem given = read;
    given.decay = 1 - lr * weight_decay;
    given.step_size = lr * read.step_size;
    read.lr_pointer = &lr;
    read.weight_decay_pointer = &weight_decay;
    centered_step(step, &read);
    centered_step(step, &given);
    EXPECT_EQ(read.param.bytes, given.param.bytes);
  }
}

inline void check_zero_gradient(const CenteredStep& step) {
  Problem problem(70, make_options(100));
  problem.draw(1, 0);
  problem.decay = 1;
  const Problem before = problem;
  centered_step(step, &problem);
  EXPECT_EQ(problem.param.bytes, before.param.bytes);
}

}  // namespace erlangen::testing
