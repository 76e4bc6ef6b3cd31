// What surrounds the polar iteration in a step, on the CPU. The formulas stand in
// kernels/polar_update.h.
//
// Each pass goes strip by strip through rows as they lie in memory. A strip's directions are made
// in a scratch array that stays in the nearest cache, then cast or applied. Where x is the
// transpose, tiles of 64 rows by 64 columns go through another such array, so that memory is read
// and written in runs on both sides.
//
// No product is contracted with a sum, so that every instruction set gives the same bits.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#elif defined(__clang__)
#pragma clang fp contract(off)
#endif

#include "polar_update.h"

#include <algorithm>

#include "row_norm_rows.h"

namespace erlangen::kernels::cpu {
namespace {

constexpr int64_t kBlockRows = 64;
constexpr int64_t kBlockCols = 4096;
constexpr int64_t kStripCols = 1024;
constexpr int64_t kTileCols = 64;
// Elements from one of a tile's rows to the next: no power of two, so that the elements of a column
// do not share a few sets of the cache.
constexpr int64_t kTileStride = kTileCols + 16;

// ---- Strips

// The strips of at most `width` columns that the block's columns are cut into, none of which
// crosses from one run of a row into the next: visitor(first column, columns, run).
template <typename Visitor>
ERLANGEN_INLINE void each_strip(const PolarUpdateOptions& options, const PolarBlock& block,
                                int64_t width, Visitor&& visitor) {
  const int64_t run = options.cols / options.segments;
  for (int64_t c = block.col; c < block.col_end;) {
    const int64_t segment = c / run;
    const int64_t count = std::min({width, block.col_end - c, (segment + 1) * run - c});
    visitor(c, count, segment);
    c += count;
  }
}

// Where column c, of that run, of a row stands.
ERLANGEN_INLINE int64_t place(const PolarUpdateOptions& options, const RowStrides& strides,
                              int64_t matrix, int64_t row, int64_t c, int64_t segment) {
  const int64_t run = options.cols / options.segments;
  return matrix * strides.outer + row * strides.row + segment * strides.segment + c - segment * run;
}

// The same in x, of the column and row that x knows them by.
ERLANGEN_INLINE int64_t place_in_x(const PolarTensor& tensor, const PolarUpdateOptions& options,
                                   int64_t matrix, int64_t row, int64_t c) {
  return (tensor.first + matrix) * options.x_matrix + row * options.x_row + c;
}

// z of a strip, written to `direction`; kStore writes the new momentum.
template <bool kStore, typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void take_strip(const PolarUpdateOptions& options, const Param* grad,
                                Momentum* momentum, Compute* direction, int64_t count,
                                const norm_step::Scalars<Compute>& s, RowFacts* facts) {
  if (options.nesterov) {
    take_gradient<true, kStore>(grad, momentum, direction, count, s, facts);
  } else {
    take_gradient<false, kStore>(grad, momentum, direction, count, s, facts);
  }
}

// ---- Momentum

template <typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE int32_t momentum_block(const PolarTensor& tensor, const PolarUpdateOptions& options,
                                       const PolarBlock& block) {
  const auto s = polar_update::scalars<Compute>(options);
  const bool stores = polar_update::stores_direction(options);
  RowFacts facts;
  Compute direction[kStrip];
  for (int64_t row = block.row; row < block.row_end; ++row) {
    each_strip(options, block, kStrip,
               [&](int64_t c, int64_t count, int64_t segment) ERLANGEN_INLINE_LAMBDA {
                 const auto at = [&](const RowStrides& strides) {
                   return place(options, strides, block.matrix, row, c, segment);
                 };
                 const Param* grad =
                     static_cast<const Param*>(tensor.grad) + at(options.grad_strides);
                 Momentum* momentum =
                     static_cast<Momentum*>(tensor.momentum) + at(options.momentum_strides);
                 prefetch(grad, kBytesAhead);
                 prefetch(momentum, kBytesAhead);
                 if (stores) {
                   take_gradient<false, true>(grad, momentum, direction, count, s, &facts);
                 } else {
                   take_strip<false>(options, grad, momentum, direction, count, s, &facts);
                 }
               });
  }
  return facts.key;
}

// ---- Cast

// Sums squares in lanes, column c of a strip in lane c mod 32; the lanes of about 4096 summands are
// folded by halves and added to a double.
template <typename Compute>
struct SumOfSquares {
  double total = 0;
  int64_t summands = 0;
  Compute lanes[kLanes] = {};

  template <typename X>
  ERLANGEN_INLINE void add(const X* x, int64_t count) {
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        const Compute y = static_cast<Compute>(load(x[c + l]));
        lanes[l] += y * y;
      }
    }
    for (int l = 0; c + l < count; ++l) {
      const Compute y = static_cast<Compute>(load(x[c + l]));
      lanes[l] += y * y;
    }
    summands += count;
    if (summands >= kBlock) fold();
  }
  ERLANGEN_INLINE void fold() {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    total += lanes[0];
    for (int l = 0; l < kLanes; ++l) lanes[l] = 0;
    summands = 0;
  }
};

template <typename Compute>
ERLANGEN_INLINE void store_x(Compute value, double* out) {
  *out = value;
}
template <typename X, typename Compute>
ERLANGEN_INLINE void store_x(Compute value, X* out) {
  store(static_cast<float>(value), out);
}

template <typename X, typename Compute>
ERLANGEN_INLINE void cast_strip(const Compute* __restrict__ direction, X* __restrict__ out,
                                int64_t count, Compute scale, SumOfSquares<Compute>* squares) {
  for (int64_t c = 0; c < count; ++c) store_x(direction[c] * scale, &out[c]);
  squares->add(out, count);
}

// x ← the tile, transposed: its rows are neighbours in x's rows.
template <typename X>
ERLANGEN_INLINE void write_transposed(const X* __restrict__ tile, X* __restrict__ x, int64_t x_row,
                                      int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r) x[c * x_row + r] = tile[r * kTileStride + c];
  }
}

template <typename X, typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE double cast_block(const PolarTensor& tensor, const PolarUpdateOptions& options,
                                  const PolarBlock& block, int32_t key) {
  const auto s = polar_update::scalars<Compute>(options);
  const bool stored = polar_update::stores_direction(options);
  X* x = static_cast<X*>(options.x);
  Compute scale;
  polar_update::prescale(options, key, &scale);
  SumOfSquares<Compute> squares;
  RowFacts facts;
  Compute direction[kStripCols];
  const auto cast = [&](int64_t row, int64_t c, int64_t count, int64_t segment,
                        X* out) ERLANGEN_INLINE_LAMBDA {
    const auto at = [&](const RowStrides& strides) {
      return place(options, strides, block.matrix, row, c, segment);
    };
    Momentum* momentum = static_cast<Momentum*>(tensor.momentum) + at(options.momentum_strides);
    if (stored) {
      for (int64_t i = 0; i < count; ++i) direction[i] = static_cast<Compute>(load(momentum[i]));
    } else {
      const Param* grad = static_cast<const Param*>(tensor.grad) + at(options.grad_strides);
      take_strip<true>(options, grad, momentum, direction, count, s, &facts);
    }
    cast_strip(direction, out, count, scale, &squares);
  };
  if (!options.transposed) {
    for (int64_t row = block.row; row < block.row_end; ++row) {
      each_strip(options, block, kStripCols,
                 [&](int64_t c, int64_t count, int64_t segment) ERLANGEN_INLINE_LAMBDA {
                   cast(row, c, count, segment,
                        x + place_in_x(tensor, options, block.matrix, row, c));
                 });
    }
  } else {
    X tile[kBlockRows * kTileStride];
    each_strip(options, block, kTileCols,
               [&](int64_t c, int64_t count, int64_t segment) ERLANGEN_INLINE_LAMBDA {
                 for (int64_t row = block.row; row < block.row_end; ++row) {
                   cast(row, c, count, segment, tile + (row - block.row) * kTileStride);
                 }
                 write_transposed(tile, x + place_in_x(tensor, options, block.matrix, c, block.row),
                                  options.x_row, block.row_end - block.row, count);
               });
  }
  squares.fold();
  return squares.total;
}

// ---- Norm

template <typename X, typename Compute>
ERLANGEN_INLINE void normalise_rows(const PolarTensor& tensor, const PolarUpdateOptions& options,
                                    int64_t matrix, int64_t begin, int64_t end, int32_t key,
                                    double squares) {
  Compute scale;
  polar_update::prescale(options, key, &scale);
  const Compute factor = polar_update::reciprocal_norm(squares, scale, options.eps);
  const int64_t cols = polar_update::x_cols(options);
  for (int64_t row = begin; row < end; ++row) {
    X* x = static_cast<X*>(options.x) + place_in_x(tensor, options, matrix, row, 0);
    for (int64_t c = 0; c < cols; ++c) store_x(static_cast<Compute>(load(x[c])) * factor, &x[c]);
  }
}

// ---- Parameter

template <typename X, typename Compute>
ERLANGEN_INLINE void read_strip(const X* __restrict__ x, Compute* __restrict__ direction,
                                int64_t count) {
  for (int64_t c = 0; c < count; ++c) direction[c] = static_cast<Compute>(load(x[c]));
}

template <typename X, typename Compute>
ERLANGEN_INLINE void read_transposed(const X* __restrict__ x, int64_t x_row,
                                     Compute* __restrict__ tile, int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      tile[r * kTileStride + c] = static_cast<Compute>(load(x[c * x_row + r]));
    }
  }
}

template <typename Visitor>
ERLANGEN_INLINE void with_x_type(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::float64: return visitor(double());
    case DType::float32: return visitor(float());
    case DType::bfloat16: return visitor(BFloat16());
    case DType::float16: return visitor(Float16());
  }
}

template <typename Param, typename Compute>
ERLANGEN_INLINE void parameter_block(const PolarTensor& tensor, const PolarUpdateOptions& options,
                                     const PolarBlock& block) {
  const auto noise = polar_update::rounding_noise(tensor, options);
  RowUpdate<Compute> u;
  u.scale = static_cast<Compute>(options.scale);
  u.length = static_cast<Compute>(polar_update::step_size(tensor));
  u.lost = static_cast<Compute>(polar_update::lost(tensor));
  const auto update = [&](int64_t row, int64_t c, int64_t count, int64_t segment,
                          const Compute* direction) ERLANGEN_INLINE_LAMBDA {
    const auto at = [&](const RowStrides& strides) {
      return place(options, strides, block.matrix, row, c, segment);
    };
    update_run(static_cast<Param*>(tensor.param) + at(options.param_strides), direction, count, u,
               options, noise, options.element_offset + at(options.element_strides));
  };
  const auto x_at = [&](auto type, int64_t row, int64_t c) ERLANGEN_INLINE_LAMBDA {
    return static_cast<const decltype(type)*>(options.x) +
           place_in_x(tensor, options, block.matrix, row, c);
  };
  if (!options.transposed) {
    Compute direction[kStripCols];
    for (int64_t row = block.row; row < block.row_end; ++row) {
      each_strip(options, block, kStripCols,
                 [&](int64_t c, int64_t count, int64_t segment) ERLANGEN_INLINE_LAMBDA {
                   with_x_type(options.product_dtype, [&](auto type) ERLANGEN_INLINE_LAMBDA {
                     read_strip(x_at(type, row, c), direction, count);
                   });
                   update(row, c, count, segment, direction);
                 });
    }
    return;
  }
  Compute tile[kBlockRows * kTileStride];
  each_strip(options, block, kTileCols,
             [&](int64_t c, int64_t count, int64_t segment) ERLANGEN_INLINE_LAMBDA {
               with_x_type(options.product_dtype, [&](auto type) ERLANGEN_INLINE_LAMBDA {
                 read_transposed(x_at(type, c, block.row), options.x_row, tile,
                                 block.row_end - block.row, count);
               });
               for (int64_t row = block.row; row < block.row_end; ++row) {
                 update(row, c, count, segment, tile + (row - block.row) * kTileStride);
               }
             });
}

// ---- All types in one function a pass, because the clones are per function and everything inlines
// into it.

template <typename P, typename M, typename C>
struct Types {
  using Param = P;
  using Momentum = M;
  using Compute = C;
};

template <typename Visitor>
ERLANGEN_INLINE void with_types(const PolarUpdateOptions& options, Visitor&& visitor) {
  const bool low = options.momentum_dtype == DType::bfloat16;
  switch (options.dtype) {
    case DType::float64: return visitor(Types<double, double, double>());
    case DType::float32:
      return low ? visitor(Types<float, BFloat16, float>()) : visitor(Types<float, float, float>());
    case DType::bfloat16:
      return low ? visitor(Types<BFloat16, BFloat16, float>())
                 : visitor(Types<BFloat16, float, float>());
    case DType::float16:
      return low ? visitor(Types<Float16, BFloat16, float>())
                 : visitor(Types<Float16, float, float>());
  }
}

ERLANGEN_CPU_CLONES void momentum_of_any_type(const PolarTensor& tensor,
                                              const PolarUpdateOptions& options,
                                              const PolarBlock& block, int32_t* key) {
  with_types(options, [&](auto types) ERLANGEN_INLINE_LAMBDA {
    using T = decltype(types);
    *key = momentum_block<typename T::Param, typename T::Momentum, typename T::Compute>(
        tensor, options, block);
  });
}

ERLANGEN_CPU_CLONES void cast_of_any_type(const PolarTensor& tensor,
                                          const PolarUpdateOptions& options,
                                          const PolarBlock& block, int32_t key, double* squares) {
  with_types(options, [&](auto types) ERLANGEN_INLINE_LAMBDA {
    with_x_type(options.product_dtype, [&](auto x) ERLANGEN_INLINE_LAMBDA {
      using T = decltype(types);
      using X = decltype(x);
      if constexpr (sizeof(X) <= sizeof(typename T::Compute)) {
        *squares = cast_block<X, typename T::Param, typename T::Momentum, typename T::Compute>(
            tensor, options, block, key);
      }
    });
  });
}

ERLANGEN_CPU_CLONES void normalise_any_type(const PolarTensor& tensor,
                                            const PolarUpdateOptions& options, int64_t matrix,
                                            int64_t begin, int64_t end, int32_t key,
                                            double squares) {
  const bool wide = options.dtype == DType::float64;
  with_x_type(options.product_dtype, [&](auto x) ERLANGEN_INLINE_LAMBDA {
    using X = decltype(x);
    wide ? normalise_rows<X, double>(tensor, options, matrix, begin, end, key, squares)
         : normalise_rows<X, float>(tensor, options, matrix, begin, end, key, squares);
  });
}

ERLANGEN_CPU_CLONES void parameter_of_any_type(const PolarTensor& tensor,
                                               const PolarUpdateOptions& options,
                                               const PolarBlock& block) {
  switch (options.dtype) {
    case DType::float64: return parameter_block<double, double>(tensor, options, block);
    case DType::float32: return parameter_block<float, float>(tensor, options, block);
    case DType::bfloat16: return parameter_block<BFloat16, float>(tensor, options, block);
    case DType::float16: return parameter_block<Float16, float>(tensor, options, block);
  }
}

}  // namespace

int64_t polar_blocks(const PolarUpdateOptions& options) {
  return ((options.rows + kBlockRows - 1) / kBlockRows) *
         ((options.cols + kBlockCols - 1) / kBlockCols);
}

PolarBlock polar_block(const PolarUpdateOptions& options, int64_t matrix, int64_t block) {
  const int64_t across = (options.cols + kBlockCols - 1) / kBlockCols;
  const int64_t row = block / across * kBlockRows, col = block % across * kBlockCols;
  return {matrix, row, std::min(row + kBlockRows, options.rows), col,
          std::min(col + kBlockCols, options.cols)};
}

int32_t polar_update_momentum(const PolarTensor& tensor, const PolarUpdateOptions& options,
                              const PolarBlock& block) {
  int32_t key = 0;
  if (!polar_update::overflowed(options)) momentum_of_any_type(tensor, options, block, &key);
  return key;
}

double polar_update_cast(const PolarTensor& tensor, const PolarUpdateOptions& options,
                         const PolarBlock& block, int32_t key) {
  double squares = 0;
  if (!polar_update::overflowed(options)) cast_of_any_type(tensor, options, block, key, &squares);
  return squares;
}

void polar_update_normalise(const PolarTensor& tensor, const PolarUpdateOptions& options,
                            int64_t matrix, int64_t begin, int64_t end, int32_t key,
                            double squares) {
  if (polar_update::overflowed(options) || options.unscaled) return;
  normalise_any_type(tensor, options, matrix, begin, end, key, squares);
}

void polar_update_parameter(const PolarTensor& tensor, const PolarUpdateOptions& options,
                            const PolarBlock& block) {
  if (!polar_update::overflowed(options)) parameter_of_any_type(tensor, options, block);
}

}  // namespace erlangen::kernels::cpu
