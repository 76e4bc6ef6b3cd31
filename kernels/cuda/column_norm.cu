// The column-norm step on CUDA. The formula and its passes stand in kernels/column_norm.h, the
// division of work in column_norm_tiles.h.
//
// A thread owns one pack of columns, 16 bytes of the narrower type, and walks down a chunk of rows
// with the loads of several rows in flight; a warp reads whole lines. The sums of the warps, and
// then of the chunks, are added in a fixed order.

#include "column_norm.cuh"
#include "column_norm_tiles.h"
#include "launch.cuh"
#include "storage.cuh"

namespace erlangen::kernels::cuda {
namespace {

constexpr int kThreads = kTilePacks * kTileWarps;

// ---- What a thread works on

// Its pack of columns in a tile, row by row of its warp.
template <typename Param, typename Momentum>
struct Strip {
  Param* param;
  const Param* grad;
  Momentum* momentum;
  int64_t param_stride, grad_stride, momentum_stride;
  int rows;  // from the warp's first one to the chunk's end

  __device__ __forceinline__ Strip(const ColumnNormTensor& t, const ColumnNormOptions& options,
                                   int64_t matrix, int64_t chunk, int64_t col)
      : param_stride(t.param_stride),
        grad_stride(t.grad_stride),
        momentum_stride(t.momentum_stride) {
    const int64_t row = chunk * kChunkRows + threadIdx.x / kTilePacks;
    param =
        static_cast<Param*>(t.param) + matrix * t.param_matrix_stride + row * param_stride + col;
    grad =
        static_cast<const Param*>(t.grad) + matrix * t.grad_matrix_stride + row * grad_stride + col;
    momentum = static_cast<Momentum*>(t.momentum) + matrix * t.momentum_matrix_stride +
               row * momentum_stride + col;
    const int64_t end = ::min((chunk + 1) * kChunkRows, options.rows);
    rows = static_cast<int>(end - row);
  }
};

// Updates a pack's momentum in place and gives its direction.
template <typename Param, typename Momentum, typename Compute, int kWidth>
__device__ __forceinline__ void take_gradient(const norm_step::Scalars<Compute>& s, bool nesterov,
                                              const Pack<Param, kWidth>& grad,
                                              Pack<Momentum, kWidth>* momentum,
                                              Compute (&direction)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const Compute g = load(grad.values[i]);
    const Compute m = norm_step::blend(s, static_cast<Compute>(load(momentum->values[i])), g);
    store(m, &momentum->values[i]);
    direction[i] = nesterov ? norm_step::blend(s, m, g) : m;
  }
}

// Rows asked for before the first is used: 64 to 128 bytes of g and m a thread, which is all that
// fits into the registers.
template <typename Compute, int kWidth>
constexpr int kRowsAhead = kWidth > 4                          ? 2
                           : kWidth > 1 || sizeof(Compute) > 4 ? 4
                                                               : 8;

// ---- First pass

template <typename Param, typename Momentum, int kWidth, bool kStores>
__global__ void __launch_bounds__(kThreads, 2)
    column_norm_sums(const __grid_constant__ ColumnTable table,
                     const __grid_constant__ ColumnNormOptions options, void* memory) {
  using Compute = typename ComputeType<Param>::type;
  constexpr int kBatch = kRowsAhead<Compute, kWidth>;
  __shared__ int32_t shared_keys[kTileWarps][kWidth][kTilePacks];
  __shared__ Compute shared_squares[kTileWarps][kWidth][kTilePacks];

  if (column_norm::overflowed(options)) return;
  const auto s = column_norm::scalars<Compute>(options);
  const int64_t chunks = chunks_of(options);
  const int64_t matrices = matrices_in(table);
  const auto scratch = column_norm::Scratch<Compute>::in(memory, matrices, chunks, options.cols);
  const int64_t tiles = matrices * chunks * tiles_across(options, kWidth);
  const int warp = threadIdx.x / kTilePacks;
  const int lane = threadIdx.x % kTilePacks;

  int tensor = 0;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const ColumnTile tile = column_tile(options, t, kWidth);
    tensor = tensor_of_matrix(table, tile.matrix, tensor);
    const int64_t col = tile.col + lane * kWidth;
    const Strip<Param, Momentum> strip(table.tensors[tensor], options,
                                       matrix_in_tensor(table, tensor, tile.matrix), tile.chunk,
                                       col);
    // Each thread sums under the scale of what it has seen, and rescales as that grows.
    int32_t keys[kWidth];
    Compute squares[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      keys[i] = 0;
      squares[i] = 0;
    }
    const int rows = col < options.cols ? strip.rows : 0;
#pragma unroll 1  // more rows ahead would spill
    for (int row = 0; row < rows; row += kBatch * kTileWarps) {
      Pack<Param, kWidth> g[kBatch];
      Pack<Momentum, kWidth> m[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int r = row + b * kTileWarps;
        if (r < rows) {
          g[b] = load_pack<Param, kWidth>(strip.grad + r * strip.grad_stride);
          m[b] = load_pack<Momentum, kWidth>(strip.momentum + r * strip.momentum_stride);
        }
      }
      Compute x[kBatch][kWidth];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int r = row + b * kTileWarps;
        if (r < rows) {
          take_gradient(s, options.nesterov, g[b], &m[b], x[b]);
          if constexpr (kStores) store_pack(m[b], strip.momentum + r * strip.momentum_stride);
        } else {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) x[b][i] = 0;
        }
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        int32_t key = keys[i];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) key = ::max(key, norm_step::magnitude_key(x[b][i]));
        squares[i] = column_norm::rescaled(squares[i], keys[i], key);
        keys[i] = key;
        Compute scale;
        norm_step::prescale(key, &scale);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const Compute y = x[b][i] * scale;
          squares[i] += y * y;
        }
      }
    }

#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      shared_keys[warp][i][lane] = keys[i];
      shared_squares[warp][i][lane] = squares[i];
    }
    __syncthreads();
    // Neighbouring threads write neighbouring columns.
    for (int c = threadIdx.x; c < kTilePacks * kWidth; c += kThreads) {
      if (tile.col + c >= options.cols) break;
      const int pack = c / kWidth;
      const int i = c % kWidth;
      int32_t key = 0;
#pragma unroll
      for (int w = 0; w < kTileWarps; ++w) key = ::max(key, shared_keys[w][i][pack]);
      Compute sum = 0;
#pragma unroll
      for (int w = 0; w < kTileWarps; ++w) {
        sum += column_norm::rescaled(shared_squares[w][i][pack], shared_keys[w][i][pack], key);
      }
      const int64_t at = (tile.matrix * chunks + tile.chunk) * options.cols + tile.col + c;
      scratch.keys[at] = key;
      scratch.squares[at] = sum;
    }
    __syncthreads();
  }
}

// ---- Between the passes: a warp's lane owns a column, the warps share its chunks

constexpr int kLengthCols = 32;
constexpr int kLengthWarps = 16;
constexpr int kLengthBatch = 4;  // chunks of a thread that are asked for at once

template <typename Compute>
__global__ void __launch_bounds__(kLengthCols* kLengthWarps, 1)
    column_norm_lengths(const __grid_constant__ ColumnTable table,
                        const __grid_constant__ ColumnNormOptions options, void* memory) {
  __shared__ int32_t shared_keys[kLengthWarps][kLengthCols];
  __shared__ Compute shared_squares[kLengthWarps][kLengthCols];

  if (column_norm::overflowed(options)) return;
  const int64_t chunks = chunks_of(options);
  const int64_t matrices = matrices_in(table);
  const auto scratch = column_norm::Scratch<Compute>::in(memory, matrices, chunks, options.cols);
  const int64_t across = (options.cols + kLengthCols - 1) / kLengthCols;
  const int warp = threadIdx.x / kLengthCols;
  const int lane = threadIdx.x % kLengthCols;

  int tensor = 0;
  for (int64_t t = blockIdx.x; t < matrices * across; t += gridDim.x) {
    const int64_t matrix = t / across;
    tensor = tensor_of_matrix(table, matrix, tensor);
    const int64_t col = (t - matrix * across) * kLengthCols + lane;
    const bool inside = col < options.cols;
    const int64_t first = column_norm::first_of_unit(options, col);
    const int64_t second = column_norm::second_of_unit(options, first);
    const int64_t partials = matrix * chunks * options.cols;
    int32_t key = 0;
    Compute squares = 0;
    for (int64_t chunk = warp; inside && chunk < chunks; chunk += kLengthBatch * kLengthWarps) {
      // All asked for before the first is used; what is not there is a column of zeros.
      int32_t own_keys[kLengthBatch][2] = {};
      Compute own_squares[kLengthBatch][2] = {};
#pragma unroll
      for (int b = 0; b < kLengthBatch; ++b) {
        if (chunk + b * kLengthWarps >= chunks) continue;
        const int64_t row = partials + (chunk + b * kLengthWarps) * options.cols;
        own_keys[b][0] = scratch.keys[row + first];
        own_squares[b][0] = scratch.squares[row + first];
        if (second == first) continue;
        own_keys[b][1] = scratch.keys[row + second];
        own_squares[b][1] = scratch.squares[row + second];
      }
#pragma unroll
      for (int i = 0; i < 2 * kLengthBatch; ++i) {
        const int32_t own_key = own_keys[i / 2][i % 2];
        const int32_t larger = ::max(key, own_key);
        squares = column_norm::rescaled(squares, key, larger) +
                  column_norm::rescaled(own_squares[i / 2][i % 2], own_key, larger);
        key = larger;
      }
    }
    shared_keys[warp][lane] = key;
    shared_squares[warp][lane] = squares;
    __syncthreads();
    if (warp == 0 && inside) {
      for (int w = 1; w < kLengthWarps; ++w) key = ::max(key, shared_keys[w][lane]);
      double sum = 0;
      for (int w = 0; w < kLengthWarps; ++w) {
        sum += column_norm::rescaled(shared_squares[w][lane], shared_keys[w][lane], key);
      }
      const int64_t at = matrix * options.cols + col;
      norm_step::prescale(key, &scratch.scales[at]);
      scratch.lengths[at] =
          static_cast<Compute>(column_norm::update_length(table.tensors[tensor], sum));
    }
    __syncthreads();
  }
}

// ---- Second pass

template <typename Param, typename Momentum, int kWidth, bool kStored>
__global__ void __launch_bounds__(kThreads, 2)
    column_norm_update(const __grid_constant__ ColumnTable table,
                       const __grid_constant__ ColumnNormOptions options, void* memory) {
  using Compute = typename ComputeType<Param>::type;
  constexpr int kBatch = kRowsAhead<Compute, kWidth>;

  if (column_norm::overflowed(options)) return;
  const auto s = column_norm::scalars<Compute>(options);
  const int64_t chunks = chunks_of(options);
  const int64_t matrices = matrices_in(table);
  const auto scratch = column_norm::Scratch<Compute>::in(memory, matrices, chunks, options.cols);
  const int64_t tiles = matrices * chunks * tiles_across(options, kWidth);
  const int lane = threadIdx.x % kTilePacks;

  int tensor = 0;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const ColumnTile tile = column_tile(options, t, kWidth);
    tensor = tensor_of_matrix(table, tile.matrix, tensor);
    const ColumnNormTensor& shared = table.tensors[tensor];
    const int64_t col = tile.col + lane * kWidth;
    if (col >= options.cols) continue;
    const Strip<Param, Momentum> strip(
        shared, options, matrix_in_tensor(table, tensor, tile.matrix), tile.chunk, col);
    const Compute lost = static_cast<Compute>(column_norm::lost(shared));
    Compute scales[kWidth];
    Compute lengths[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      scales[i] = scratch.scales[tile.matrix * options.cols + col + i];
      lengths[i] = scratch.lengths[tile.matrix * options.cols + col + i];
    }
#pragma unroll 1
    for (int row = 0; row < strip.rows; row += kBatch * kTileWarps) {
      Pack<Param, kWidth> p[kBatch];
      Pack<Param, kWidth> g[kBatch];
      Pack<Momentum, kWidth> m[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int r = row + b * kTileWarps;
        if (r < strip.rows) {
          m[b] = load_pack<Momentum, kWidth>(strip.momentum + r * strip.momentum_stride);
          if constexpr (!kStored) {
            g[b] = load_pack<Param, kWidth>(strip.grad + r * strip.grad_stride);
          }
          p[b] = load_pack<Param, kWidth>(strip.param + r * strip.param_stride);
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int r = row + b * kTileWarps;
        if (r >= strip.rows) continue;
        Compute x[kWidth];
        if constexpr (kStored) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) x[i] = load(m[b].values[i]);
        } else {
          take_gradient(s, options.nesterov, g[b], &m[b], x);
          store_pack(m[b], strip.momentum + r * strip.momentum_stride);
        }
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const Compute y = x[i] * scales[i];
          const Compute old = load(p[b].values[i]);
          const Compute share = options.cautious ? column_norm::cautiously(lost, old, y) : lost;
          store(norm_step::updated(old, share, lengths[i], y), &p[b].values[i]);
        }
        store_pack(p[b], strip.param + r * strip.param_stride);
      }
    }
  }
}

// ---- Launch

template <typename Param, typename Momentum, int kWidth, bool kStored>
cudaError_t launch_passes(const ColumnTable& table, const ColumnNormOptions& options, void* scratch,
                          cudaStream_t stream) {
  using Compute = typename ComputeType<Param>::type;
  const int64_t matrices = matrices_in(table);
  const int64_t tiles = matrices * chunks_of(options) * tiles_across(options, kWidth);
  cudaError_t error =
      launch_on_all(tiles, kThreads, stream, column_norm_sums<Param, Momentum, kWidth, kStored>,
                    table, options, scratch);
  if (error != cudaSuccess) return error;
  const int64_t strips = matrices * ((options.cols + kLengthCols - 1) / kLengthCols);
  error = launch_on_all(strips, kLengthCols * kLengthWarps, stream, column_norm_lengths<Compute>,
                        table, options, scratch);
  if (error != cudaSuccess) return error;
  return launch_on_all(tiles, kThreads, stream,
                       column_norm_update<Param, Momentum, kWidth, kStored>, table, options,
                       scratch);
}

template <typename Param, typename Momentum, int kWidth>
cudaError_t launch_passes(const ColumnTable& table, const ColumnNormOptions& options, void* scratch,
                          cudaStream_t stream) {
  if constexpr (sizeof(Momentum) >= 4) {
    if (column_norm::stores_direction(options)) {
      return launch_passes<Param, Momentum, kWidth, true>(table, options, scratch, stream);
    }
  }
  return launch_passes<Param, Momentum, kWidth, false>(table, options, scratch, stream);
}

template <typename Param, typename Momentum>
cudaError_t step(const ColumnNormTensor* tensors, int64_t count, const ColumnNormOptions& options,
                 void* scratch, cudaStream_t stream) {
  constexpr int kWidth = pack_width(sizeof(Param), sizeof(Momentum));
  ColumnTable table;
  for (const bool vectors : {true, false}) {
    for (int64_t begin = 0; begin < count;) {
      begin = fill_table(tensors, count, begin, vectors, options, sizeof(Param), sizeof(Momentum),
                         &table);
      if (table.count == 0) continue;
      const cudaError_t error =
          vectors ? launch_passes<Param, Momentum, kWidth>(table, options, scratch, stream)
                  : launch_passes<Param, Momentum, 1>(table, options, scratch, stream);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace

int64_t column_norm_scratch_bytes(const ColumnNormTensor* tensors, int64_t count,
                                  const ColumnNormOptions& options) {
  // Launches follow each other on the stream and use the same memory; which tensors share one shows
  // only then, so that this is enough for all.
  int64_t matrices = 0;
  for (int64_t i = 0; i < count; ++i) matrices += tensors[i].matrices;
  const int64_t chunks = chunks_of(options);
  return options.dtype == DType::float64
             ? column_norm::Scratch<double>::bytes(matrices, chunks, options.cols)
             : column_norm::Scratch<float>::bytes(matrices, chunks, options.cols);
}

cudaError_t column_norm_step(const ColumnNormTensor* tensors, int64_t count,
                             const ColumnNormOptions& options, void* scratch, cudaStream_t stream) {
  if (!column_norm_supports(options)) return cudaErrorInvalidValue;
  if (options.rows == 0 || options.cols == 0) return cudaSuccess;
  const bool low = options.momentum_dtype == DType::bfloat16;
  switch (options.dtype) {
    case DType::float64: return step<double, double>(tensors, count, options, scratch, stream);
    case DType::float32:
      return low ? step<float, __nv_bfloat16>(tensors, count, options, scratch, stream)
                 : step<float, float>(tensors, count, options, scratch, stream);
    case DType::bfloat16:
      return low ? step<__nv_bfloat16, __nv_bfloat16>(tensors, count, options, scratch, stream)
                 : step<__nv_bfloat16, float>(tensors, count, options, scratch, stream);
    case DType::float16:
      return low ? step<__half, __nv_bfloat16>(tensors, count, options, scratch, stream)
                 : step<__half, float>(tensors, count, options, scratch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace erlangen::kernels::cuda
