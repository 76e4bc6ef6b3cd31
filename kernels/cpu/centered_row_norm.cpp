// The centered row-norm step on the CPU. Formula and passes stand in kernels/centered_row_norm.h.
//
// Each pass takes a chunk row by row. A row's direction goes to a scratch row, and the chunk's sums
// are a row of doubles; both stay in the nearest caches. As in row_norm.cpp, memory is asked for
// strip by strip before it is needed.
//
// No product is contracted with a sum, so that every instruction set gives the same bits.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#elif defined(__clang__)
#pragma clang fp contract(off)
#endif

#include "centered_row_norm.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>

#include "row_norm_rows.h"

namespace erlangen::kernels::cpu {
namespace {

constexpr int64_t kColumnBlock = 256;

template <typename Param, typename Momentum, typename Compute>
struct Row {
  Param* param;
  const Param* grad;
  Momentum* momentum;
  int64_t element;
};

// A chunk of one matrix: its rows, and where its sums go.
template <typename Param, typename Momentum, typename Compute>
struct Chunk {
  const RowNormTensor& tensor;
  int64_t matrix;
  int64_t begin, end;  // rows of the matrix
  centered::Scratch<Compute> scratch;
  double* sums;

  Chunk(const RowNormTensor& tensor, const RowNormOptions& options, void* memory, int64_t index)
      : tensor(tensor),
        matrix(index / centered::chunks_of(tensor.inner)),
        scratch(centered::scratch_of<Compute>(memory, tensor, options, matrix)) {
    const int64_t chunk = index % centered::chunks_of(tensor.inner);
    begin = chunk * centered::kChunkRows;
    end = std::min(begin + centered::kChunkRows, tensor.inner);
    sums = scratch.sums + chunk * centered::padded(options.cols);
  }
  Row<Param, Momentum, Compute> row(int64_t r) const {
    const row_norm::RowPlace place{matrix, r};
    return {
        static_cast<Param*>(tensor.param) + row_norm::row_start(tensor.param_strides, place),
        static_cast<const Param*>(tensor.grad) + row_norm::row_start(tensor.grad_strides, place),
        static_cast<Momentum*>(tensor.momentum) +
            row_norm::row_start(tensor.momentum_strides, place),
        tensor.element_offset + row_norm::row_start(tensor.element_strides, place)};
  }
};

// Whether the momentum in memory is the old one until the last pass.
template <typename Momentum, typename Compute>
constexpr bool kLate = sizeof(Momentum) < sizeof(Compute);

// The direction of a strip once more, after the first pass: out[c] = f(c, direction). In one loop,
// because a copy of the momentum on the way would cost more than all else.
template <bool kNesterov, bool kStore, typename Param, typename Momentum, typename Compute,
          typename F>
ERLANGEN_INLINE void take_again(const Param* __restrict__ grad, Momentum* __restrict__ momentum,
                                Compute* __restrict__ out, int64_t cols,
                                const row_norm::Scalars<Compute>& s, F&& f) {
  for (int64_t c = 0; c < cols; ++c) {
    Compute m = load(momentum[c]);
    if constexpr (kLate<Momentum, Compute>) {
      m = row_norm::blend(s, m, static_cast<Compute>(load(grad[c])));
      if (kStore) store(m, &momentum[c]);
    }
    out[c] = f(c, kNesterov ? row_norm::blend(s, m, static_cast<Compute>(load(grad[c]))) : m);
  }
}

template <bool kStore, typename Param, typename Momentum, typename Compute, typename F>
ERLANGEN_INLINE void take_again(const Param* grad, Momentum* momentum, Compute* out, int64_t cols,
                                const row_norm::Scalars<Compute>& s, bool nesterov, F&& f) {
  if (nesterov) return take_again<true, kStore>(grad, momentum, out, cols, s, f);
  take_again<false, kStore>(grad, momentum, out, cols, s, f);
}

template <typename Compute>
ERLANGEN_INLINE void add_to(double* __restrict__ sums, const Compute* __restrict__ row,
                            int64_t cols) {
  for (int64_t c = 0; c < cols; ++c) sums[c] += row[c];
}

// ---- The passes over chunks

template <typename Param, typename Momentum, typename Compute>
struct Sums {
  static ERLANGEN_INLINE void run(const Chunk<Param, Momentum, Compute>& chunk,
                                  const RowNormOptions& options, Compute* direction) {
    constexpr bool kStore = !kLate<Momentum, Compute>;
    const auto s = row_norm::scalars<Compute>(options);
    std::fill_n(chunk.sums, options.cols, 0.0);
    RowFacts unused;
    for (int64_t r = chunk.begin; r < chunk.end; ++r) {
      const auto row = chunk.row(r);
      for (int64_t c = 0; c < options.cols; c += kStrip) {
        const int64_t count = std::min(kStrip, options.cols - c);
        prefetch(row.grad + c, kBytesAhead);
        prefetch(row.momentum + c, kBytesAhead);
        if (options.nesterov) {
          take_gradient<true, kStore>(row.grad + c, row.momentum + c, direction, count, s, &unused);
        } else {
          take_gradient<false, kStore>(row.grad + c, row.momentum + c, direction, count, s,
                                       &unused);
        }
        add_to(chunk.sums + c, direction, count);
      }
    }
  }
};

template <typename Param, typename Momentum, typename Compute>
struct Units {
  static ERLANGEN_INLINE void run(const Chunk<Param, Momentum, Compute>& chunk,
                                  const RowNormOptions& options, Compute* direction) {
    const int64_t cols = options.cols;
    const auto s = row_norm::scalars<Compute>(options);
    const bool reads_grad =
        kLate<Momentum, Compute> || options.nesterov || options.gradient_support;
    std::fill_n(chunk.sums, cols, 0.0);
    for (int64_t r = chunk.begin; r < chunk.end; ++r) {
      const auto row = chunk.row(r);
      int32_t key = 0;
      uint64_t gradient_bits = 0;
      for (int64_t c = 0; c < cols; c += kStrip) {
        const int64_t count = std::min(kStrip, cols - c);
        prefetch(row.momentum + c, kBytesAhead);
        if (reads_grad) prefetch(row.grad + c, kBytesAhead);
        const Compute* __restrict__ mean = chunk.scratch.mean + c;
        take_again<false>(row.grad + c, row.momentum + c, direction + c, count, s, options.nesterov,
                          [&](int64_t i, Compute x) ERLANGEN_INLINE_LAMBDA {
                            const Compute d = x - mean[i];
                            key = std::max(key, row_norm::magnitude_key(d));
                            return d;
                          });
        if (options.gradient_support) {
          for (int64_t i = 0; i < count; ++i) gradient_bits |= nonzero_bits(row.grad[c + i]);
        }
      }
      centered::RowScale<Compute> scale;
      row_norm::prescale(key, &scale.scale);
      const double squares = sum_of_squares(direction, cols, scale.scale);
      scale.inverse_length = static_cast<Compute>(squares == 0 ? 0 : 1 / std::sqrt(squares));
      scale.moves = !options.gradient_support || gradient_bits != 0;
      chunk.scratch.rows[r] = scale;
      double* __restrict__ sums = chunk.sums;
      for (int64_t c = 0; c < cols; ++c) sums[c] += centered::unit(direction[c], scale);
    }
  }
};

template <typename Param, typename Momentum, typename Compute>
struct Update {
  static ERLANGEN_INLINE void run(const Chunk<Param, Momentum, Compute>& chunk,
                                  const RowNormOptions& options, Compute* direction) {
    const int64_t cols = options.cols;
    const auto s = row_norm::scalars<Compute>(options);
    const auto noise = row_norm::rounding_noise(chunk.tensor, options);
    const bool reads_grad = kLate<Momentum, Compute> || options.nesterov;
    const RowUpdate<Compute> u{1, static_cast<Compute>(row_norm::step_size(chunk.tensor)),
                               static_cast<Compute>(row_norm::lost(chunk.tensor))};
    for (int64_t r = chunk.begin; r < chunk.end; ++r) {
      const auto row = chunk.row(r);
      const centered::RowScale<Compute> scale = chunk.scratch.rows[r];
      for (int64_t c = 0; c < cols; c += kStrip) {
        const int64_t count = std::min(kStrip, cols - c);
        prefetch(row.momentum + c, kBytesAhead);
        prefetch(row.param + c, kBytesAhead);
        if (reads_grad) prefetch(row.grad + c, kBytesAhead);
        const Compute* __restrict__ mean = chunk.scratch.mean + c;
        const Compute* __restrict__ unit_mean = chunk.scratch.unit_mean + c;
        take_again<true>(row.grad + c, row.momentum + c, direction, count, s, options.nesterov,
                         [&](int64_t i, Compute x) ERLANGEN_INLINE_LAMBDA {
                           return centered::unit(x - mean[i], scale) - unit_mean[i];
                         });
        if (scale.moves == 0) continue;
        update_run(row.param + c, direction, count, u, options, noise, row.element + c);
      }
    }
  }
};

template <template <typename, typename, typename> class Pass, typename Param, typename Momentum,
          typename Compute>
ERLANGEN_INLINE void over_chunks(const RowNormTensor& tensor, const RowNormOptions& options,
                                 void* scratch, int64_t begin, int64_t end) {
  if (row_norm::overflowed(options)) return;
  const std::unique_ptr<Compute[]> direction(new Compute[std::max(options.cols, kStrip)]);
  for (int64_t index = begin; index < end; ++index) {
    const Chunk<Param, Momentum, Compute> chunk(tensor, options, scratch, index);
    Pass<Param, Momentum, Compute>::run(chunk, options, direction.get());
  }
}

// All types in one function, because the clones are per function and everything inlines into it.
template <template <typename, typename, typename> class Pass>
ERLANGEN_INLINE void over_chunks_of_any_type(const RowNormTensor& tensor,
                                             const RowNormOptions& options, void* scratch,
                                             int64_t begin, int64_t end) {
  const bool low = options.momentum_dtype == DType::bfloat16;
  switch (options.dtype) {
    case DType::float64:
      return over_chunks<Pass, double, double, double>(tensor, options, scratch, begin, end);
    case DType::float32:
      return low ? over_chunks<Pass, float, BFloat16, float>(tensor, options, scratch, begin, end)
                 : over_chunks<Pass, float, float, float>(tensor, options, scratch, begin, end);
    case DType::bfloat16:
      return low ? over_chunks<Pass, BFloat16, BFloat16, float>(tensor, options, scratch, begin,
                                                                end)
                 : over_chunks<Pass, BFloat16, float, float>(tensor, options, scratch, begin, end);
    case DType::float16:
      return low ? over_chunks<Pass, Float16, BFloat16, float>(tensor, options, scratch, begin, end)
                 : over_chunks<Pass, Float16, float, float>(tensor, options, scratch, begin, end);
  }
}

ERLANGEN_CPU_CLONES void sums_of_any_type(const RowNormTensor& tensor,
                                          const RowNormOptions& options, void* scratch,
                                          int64_t begin, int64_t end) {
  over_chunks_of_any_type<Sums>(tensor, options, scratch, begin, end);
}
ERLANGEN_CPU_CLONES void units_of_any_type(const RowNormTensor& tensor,
                                           const RowNormOptions& options, void* scratch,
                                           int64_t begin, int64_t end) {
  over_chunks_of_any_type<Units>(tensor, options, scratch, begin, end);
}
ERLANGEN_CPU_CLONES void update_of_any_type(const RowNormTensor& tensor,
                                            const RowNormOptions& options, void* scratch,
                                            int64_t begin, int64_t end) {
  over_chunks_of_any_type<Update>(tensor, options, scratch, begin, end);
}

// ---- The mean: the chunks' sums, one after the other

template <typename Compute>
void mean(const RowNormTensor& tensor, const RowNormOptions& options, void* memory, bool of_units,
          int64_t begin, int64_t end) {
  const int64_t blocks = (options.cols + kColumnBlock - 1) / kColumnBlock;
  for (int64_t index = begin; index < end; ++index) {
    const auto scratch = centered::scratch_of<Compute>(memory, tensor, options, index / blocks);
    const int64_t first = index % blocks * kColumnBlock;
    const int64_t count = std::min(kColumnBlock, options.cols - first);
    double total[kColumnBlock] = {};
    for (int64_t chunk = 0; chunk < centered::chunks_of(tensor.inner); ++chunk) {
      add_to(total, scratch.sums + chunk * centered::padded(options.cols) + first, count);
    }
    Compute* mean = (of_units ? scratch.unit_mean : scratch.mean) + first;
    for (int64_t c = 0; c < count; ++c) {
      mean[c] = static_cast<Compute>(total[c] / static_cast<double>(tensor.inner));
    }
  }
}

}  // namespace

int64_t centered_chunks(const RowNormTensor& tensor) {
  return centered::matrices_of(tensor) * centered::chunks_of(tensor.inner);
}

int64_t centered_column_blocks(const RowNormTensor& tensor, const RowNormOptions& options) {
  return centered::matrices_of(tensor) * ((options.cols + kColumnBlock - 1) / kColumnBlock);
}

void centered_row_norm_sums(const RowNormTensor& tensor, const RowNormOptions& options,
                            void* scratch, int64_t begin, int64_t end) {
  sums_of_any_type(tensor, options, scratch, begin, end);
}

void centered_row_norm_mean(const RowNormTensor& tensor, const RowNormOptions& options,
                            void* scratch, bool of_units, int64_t begin, int64_t end) {
  if (row_norm::overflowed(options)) return;
  if (options.dtype == DType::float64) {
    return mean<double>(tensor, options, scratch, of_units, begin, end);
  }
  mean<float>(tensor, options, scratch, of_units, begin, end);
}

void centered_row_norm_units(const RowNormTensor& tensor, const RowNormOptions& options,
                             void* scratch, int64_t begin, int64_t end) {
  units_of_any_type(tensor, options, scratch, begin, end);
}

void centered_row_norm_update(const RowNormTensor& tensor, const RowNormOptions& options,
                              void* scratch, int64_t begin, int64_t end) {
  update_of_any_type(tensor, options, scratch, begin, end);
}

}  // namespace erlangen::kernels::cpu
