// The column-norm step on the CPU. The formula and its passes stand in kernels/column_norm.h.
//
// Columns that lie side by side fill the vectors. The first pass goes through 16 rows at a time, in
// strips of 64 columns: a strip's direction stays in the nearest cache from its largest magnitudes
// to its squares, and a column's 16 squares join the sum of the chunk. No product is contracted
// with a sum, so that every instruction set below gives the same bits.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#elif defined(__clang__)
#pragma clang fp contract(off)
#endif

#include "column_norm.h"

#include <algorithm>
#include <type_traits>

#include "prefetch.h"
#include "storage.h"

namespace erlangen::kernels::cpu {
namespace {

constexpr int64_t kBlockRows = 16;

int64_t chunks_of(const ColumnNormOptions& options) {
  return (options.rows + kColumnNormChunkRows - 1) / kColumnNormChunkRows;
}

// One row of a block in the three buffers.
template <typename Param, typename Momentum>
struct Row {
  Param* param;
  const Param* grad;
  Momentum* momentum;

  ERLANGEN_INLINE Row(const ColumnNormTensor& t, int64_t matrix, int64_t row, int64_t col)
      : param(static_cast<Param*>(t.param) + matrix * t.param_matrix_stride + row * t.param_stride +
              col),
        grad(static_cast<const Param*>(t.grad) + matrix * t.grad_matrix_stride +
             row * t.grad_stride + col),
        momentum(static_cast<Momentum*>(t.momentum) + matrix * t.momentum_matrix_stride +
                 row * t.momentum_stride + col) {}
};

// ---- First pass

// Adds a strip, at most kBlockRows x kStrip elements from `first` on, to the chunk's sums:
// directions and largest magnitudes, then squares under the scale of these. Meanwhile it asks for
// the strip kBlockRows further down.
template <bool kStores, bool kNesterov, typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void sum_strip(const ColumnNormTensor& t, const Row<Param, Momentum>& first,
                               int64_t rows, int64_t cols, const norm_step::Scalars<Compute>& s,
                               Compute* __restrict__ squares, int32_t* __restrict__ keys) {
  alignas(kCacheLine) Compute direction[kBlockRows * kStrip];
  alignas(kCacheLine) int32_t strip_keys[kStrip];
  alignas(kCacheLine) Compute scales[kStrip];
  alignas(kCacheLine) Compute strip_squares[kStrip];
  for (int64_t c = 0; c < cols; ++c) strip_keys[c] = keys[c];
  for (int64_t r = 0; r < rows; ++r) {
    const Param* __restrict__ grad = first.grad + r * t.grad_stride;
    Momentum* __restrict__ momentum = first.momentum + r * t.momentum_stride;
    prefetch(grad, kBlockRows * t.grad_stride * static_cast<int64_t>(sizeof(Param)));
    prefetch(momentum, kBlockRows * t.momentum_stride * static_cast<int64_t>(sizeof(Momentum)));
    for (int64_t c = 0; c < cols; ++c) {
      const Compute g = load(grad[c]);
      const Compute m = norm_step::blend(s, static_cast<Compute>(load(momentum[c])), g);
      const Compute x = kNesterov ? norm_step::blend(s, m, g) : m;
      if (kStores) store(m, &momentum[c]);
      direction[r * kStrip + c] = x;
      strip_keys[c] = std::max(strip_keys[c], norm_step::magnitude_key(x));
    }
  }
  for (int64_t c = 0; c < cols; ++c) {
    squares[c] = column_norm::rescaled(squares[c], keys[c], strip_keys[c]);
    keys[c] = strip_keys[c];
    norm_step::prescale(strip_keys[c], &scales[c]);
    strip_squares[c] = 0;
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const Compute y = direction[r * kStrip + c] * scales[c];
      strip_squares[c] += y * y;
    }
  }
  for (int64_t c = 0; c < cols; ++c) squares[c] += strip_squares[c];
}

template <bool kStores, bool kNesterov, typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void sum(const ColumnNormTensor& t, const ColumnNormOptions& o,
                         const ColumnNormBlock& b, void* memory) {
  const int64_t chunks = chunks_of(o);
  const auto scratch = column_norm::Scratch<Compute>::in(memory, t.matrices, chunks, o.cols);
  const auto s = column_norm::scalars<Compute>(o);
  for (int64_t begin = b.row_begin; begin < b.row_end; begin += kColumnNormChunkRows) {
    const int64_t end = std::min(begin + kColumnNormChunkRows, b.row_end);
    const int64_t first = (b.matrix * chunks + begin / kColumnNormChunkRows) * o.cols;
    Compute* squares = scratch.squares + first;
    int32_t* keys = scratch.keys + first;
    std::fill(squares + b.col_begin, squares + b.col_end, Compute(0));
    std::fill(keys + b.col_begin, keys + b.col_end, 0);
    for (int64_t row = begin; row < end; row += kBlockRows) {
      const int64_t rows = std::min(kBlockRows, end - row);
      for (int64_t col = b.col_begin; col < b.col_end; col += kStrip) {
        const Row<Param, Momentum> at(t, b.matrix, row, col);
        // The width of a full strip is for the compiler to know.
        if (b.col_end - col >= kStrip) {
          sum_strip<kStores, kNesterov>(t, at, rows, kStrip, s, squares + col, keys + col);
        } else {
          sum_strip<kStores, kNesterov>(t, at, rows, b.col_end - col, s, squares + col, keys + col);
        }
      }
    }
  }
}

// ---- Between the passes

template <typename Compute>
ERLANGEN_INLINE void lengths(const ColumnNormTensor& t, const ColumnNormOptions& o,
                             const ColumnNormBlock& b, void* memory) {
  const int64_t chunks = chunks_of(o);
  const auto scratch = column_norm::Scratch<Compute>::in(memory, t.matrices, chunks, o.cols);
  const int64_t partials = b.matrix * chunks * o.cols;
  for (int64_t col = b.col_begin; col < b.col_end; ++col) {
    const int64_t first = column_norm::first_of_unit(o, col);
    const int64_t second = column_norm::second_of_unit(o, first);
    int32_t key = 0;
    for (int64_t i = 0; i < chunks * o.cols; i += o.cols) {
      key = std::max(key, scratch.keys[partials + i + first]);
      key = std::max(key, scratch.keys[partials + i + second]);
    }
    double squares = 0;
    const auto add = [&](int64_t i) {
      squares += column_norm::rescaled(scratch.squares[i], scratch.keys[i], key);
    };
    for (int64_t i = 0; i < chunks * o.cols; i += o.cols) {
      add(partials + i + first);
      if (second != first) add(partials + i + second);
    }
    norm_step::prescale(key, &scratch.scales[b.matrix * o.cols + col]);
    scratch.lengths[b.matrix * o.cols + col] =
        static_cast<Compute>(column_norm::update_length(t, squares));
  }
}

// ---- Second pass

template <bool kStored, bool kNesterov, bool kCautious, typename Param, typename Momentum,
          typename Compute>
ERLANGEN_INLINE void update_row(Param* __restrict__ param, const Param* __restrict__ grad,
                                Momentum* __restrict__ momentum, const Compute* __restrict__ scales,
                                const Compute* __restrict__ lengths, int64_t cols, Compute lost,
                                const norm_step::Scalars<Compute>& s) {
  for (int64_t c = 0; c < cols; ++c) {
    Compute x = load(momentum[c]);
    if (!kStored) {
      const Compute g = load(grad[c]);
      const Compute m = norm_step::blend(s, x, g);
      x = kNesterov ? norm_step::blend(s, m, g) : m;
      store(m, &momentum[c]);
    }
    const Compute p = load(param[c]);
    const Compute y = x * scales[c];
    const Compute share = kCautious ? column_norm::cautiously(lost, p, y) : lost;
    store(norm_step::updated(p, share, lengths[c], y), &param[c]);
  }
}

template <bool kStored, bool kNesterov, bool kCautious, typename Param, typename Momentum,
          typename Compute>
ERLANGEN_INLINE void update(const ColumnNormTensor& t, const ColumnNormOptions& o,
                            const ColumnNormBlock& b, const void* memory) {
  const auto scratch = column_norm::Scratch<Compute>::in(const_cast<void*>(memory), t.matrices,
                                                         chunks_of(o), o.cols);
  const Compute* scales = scratch.scales + b.matrix * o.cols;
  const Compute* lengths = scratch.lengths + b.matrix * o.cols;
  const auto s = column_norm::scalars<Compute>(o);
  const Compute lost = static_cast<Compute>(column_norm::lost(t));
  for (int64_t row = b.row_begin; row < b.row_end; ++row) {
    for (int64_t col = b.col_begin; col < b.col_end; col += kStrip) {
      const int64_t cols = std::min(kStrip, b.col_end - col);
      const Row<Param, Momentum> at(t, b.matrix, row, col);
      prefetch(at.param, kBytesAhead);
      prefetch(at.momentum, kBytesAhead);
      if (!kStored) prefetch(at.grad, kBytesAhead);
      update_row<kStored, kNesterov, kCautious>(at.param, at.grad, at.momentum, scales + col,
                                                lengths + col, cols, lost, s);
    }
  }
}

// ---- All types in one function for each pass, because the clones are per function and everything
// inlines into it.

template <typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void sum_of_type(const ColumnNormTensor& t, const ColumnNormOptions& o,
                                 const ColumnNormBlock& b, void* scratch) {
  if (o.nesterov) return sum<false, true, Param, Momentum, Compute>(t, o, b, scratch);
  constexpr bool kStores = std::is_same_v<Momentum, Compute>;
  sum<kStores, false, Param, Momentum, Compute>(t, o, b, scratch);
}

template <typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void update_of_type(const ColumnNormTensor& t, const ColumnNormOptions& o,
                                    const ColumnNormBlock& b, const void* scratch) {
  constexpr bool kStored = std::is_same_v<Momentum, Compute>;
  if (o.nesterov) {
    return o.cautious ? update<false, true, true, Param, Momentum, Compute>(t, o, b, scratch)
                      : update<false, true, false, Param, Momentum, Compute>(t, o, b, scratch);
  }
  return o.cautious ? update<kStored, false, true, Param, Momentum, Compute>(t, o, b, scratch)
                    : update<kStored, false, false, Param, Momentum, Compute>(t, o, b, scratch);
}

ERLANGEN_CPU_CLONES void sum_of_any_type(const ColumnNormTensor& t, const ColumnNormOptions& o,
                                         const ColumnNormBlock& b, void* scratch) {
  const bool low = o.momentum_dtype == DType::bfloat16;
  switch (o.dtype) {
    case DType::float64: return sum_of_type<double, double, double>(t, o, b, scratch);
    case DType::float32:
      return low ? sum_of_type<float, BFloat16, float>(t, o, b, scratch)
                 : sum_of_type<float, float, float>(t, o, b, scratch);
    case DType::bfloat16:
      return low ? sum_of_type<BFloat16, BFloat16, float>(t, o, b, scratch)
                 : sum_of_type<BFloat16, float, float>(t, o, b, scratch);
    case DType::float16:
      return low ? sum_of_type<Float16, BFloat16, float>(t, o, b, scratch)
                 : sum_of_type<Float16, float, float>(t, o, b, scratch);
  }
}

ERLANGEN_CPU_CLONES void update_of_any_type(const ColumnNormTensor& t, const ColumnNormOptions& o,
                                            const ColumnNormBlock& b, const void* scratch) {
  const bool low = o.momentum_dtype == DType::bfloat16;
  switch (o.dtype) {
    case DType::float64: return update_of_type<double, double, double>(t, o, b, scratch);
    case DType::float32:
      return low ? update_of_type<float, BFloat16, float>(t, o, b, scratch)
                 : update_of_type<float, float, float>(t, o, b, scratch);
    case DType::bfloat16:
      return low ? update_of_type<BFloat16, BFloat16, float>(t, o, b, scratch)
                 : update_of_type<BFloat16, float, float>(t, o, b, scratch);
    case DType::float16:
      return low ? update_of_type<Float16, BFloat16, float>(t, o, b, scratch)
                 : update_of_type<Float16, float, float>(t, o, b, scratch);
  }
}

}  // namespace

int64_t column_norm_scratch_bytes(const ColumnNormTensor& tensor,
                                  const ColumnNormOptions& options) {
  const int64_t chunks = chunks_of(options);
  return options.dtype == DType::float64
             ? column_norm::Scratch<double>::bytes(tensor.matrices, chunks, options.cols)
             : column_norm::Scratch<float>::bytes(tensor.matrices, chunks, options.cols);
}

void column_norm_sum(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                     const ColumnNormBlock& block, void* scratch) {
  if (!column_norm::overflowed(options)) sum_of_any_type(tensor, options, block, scratch);
}

void column_norm_lengths(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                         const ColumnNormBlock& block, void* scratch) {
  if (column_norm::overflowed(options)) return;
  if (options.dtype == DType::float64) return lengths<double>(tensor, options, block, scratch);
  lengths<float>(tensor, options, block, scratch);
}

void column_norm_update(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                        const ColumnNormBlock& block, const void* scratch) {
  if (!column_norm::overflowed(options)) update_of_any_type(tensor, options, block, scratch);
}

}  // namespace erlangen::kernels::cpu
