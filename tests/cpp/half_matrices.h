// Batches of matrices in half precision for the tests of CUDA kernels on the host.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "row_norm_oracle.h"

namespace erlangen::testing {

// A batch of matrices in half precision. Everything between their rows is NaN, and stays it.
struct Matrices {
  static constexpr uint16_t kNaN = 0x7fff;  // in both types
  DType dtype;
  int64_t batch, rows, cols, row, matrix;
  std::vector<uint16_t> storage;
  int64_t offset;

  Matrices(DType dtype, int64_t batch, int64_t rows, int64_t cols, int64_t padding = 0)
      : dtype(dtype),
        batch(batch),
        rows(rows),
        cols(cols),
        row((cols + 7) / 8 * 8 + padding),
        matrix(row * rows + padding),
        storage(batch * matrix + 8, kNaN) {
    align();
  }
  Matrices(const Matrices& other) : storage() { *this = other; }
  Matrices& operator=(const Matrices& other) {
    dtype = other.dtype, batch = other.batch, rows = other.rows, cols = other.cols;
    row = other.row, matrix = other.matrix;
    storage.assign(other.storage.size(), kNaN);
    align();
    std::memcpy(data(), other.storage.data() + other.offset, 2 * batch * matrix);
    return *this;
  }
  void align() {
    const auto address = reinterpret_cast<uintptr_t>(storage.data());
    offset = static_cast<int64_t>((16 - address % 16) % 16 / 2);
  }
  uint16_t* data() { return storage.data() + offset; }
  uint16_t& bits(int64_t m, int64_t r, int64_t c) { return data()[m * matrix + r * row + c]; }
  double get(int64_t m, int64_t r, int64_t c) { return decode_half(dtype, bits(m, r, c)); }
  void set(int64_t m, int64_t r, int64_t c, double x) {
    bits(m, r, c) = std::isnan(x) ? kNaN : encode_half(dtype, x);
  }
  void fill(const std::function<double()>& draw) {
    for (int64_t m = 0; m < batch; ++m) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) set(m, r, c, draw());
      }
    }
  }
  void expect_gaps_untouched() {
    for (int64_t m = 0; m < batch; ++m) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = cols; c < row; ++c) ASSERT_EQ(bits(m, r, c), kNaN);
      }
      for (int64_t i = rows * row; i < matrix; ++i) ASSERT_EQ(data()[m * matrix + i], kNaN);
    }
  }
};

}  // namespace erlangen::testing
