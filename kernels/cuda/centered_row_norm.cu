// The centered row-norm step on CUDA. Formula and passes stand in kernels/centered_row_norm.h, the
// division of work in centered_row_norm_tiles.h.
//
// In the first and the last pass a block takes a tile of columns through a chunk of rows, a thread
// a pack of columns. In the second a block takes the whole rows of a shorter chunk, a few at a
// time: first their lengths, then, while these rows are still in the nearest cache, each thread
// adds its own columns.

#include <algorithm>

#include "centered_row_norm.cuh"
#include "centered_row_norm_device.cuh"
#include "centered_row_norm_tiles.h"
#include "launch.cuh"
#include "row_norm_device.cuh"
#include "row_norm_rows.cuh"
#include "row_norm_tiles.h"

namespace erlangen::kernels::cuda {
namespace {

// ---- First and last pass: tiles of columns

constexpr int kTileThreads = 128;
constexpr int kRowsAhead = 4;  // rows asked for before the first is used

template <typename Param, typename Momentum, int kWidth>
__global__ void __launch_bounds__(kTileThreads, 4)
    centered_sums(const __grid_constant__ CenteredTable table,
                  const __grid_constant__ RowNormOptions options) {
  using Compute = typename ComputeType<Param>::type;
  using Own = Directions<Param, Momentum, Compute>;
  if (row_norm::overflowed(options)) return;
  const auto s = row_norm::scalars<Compute>(options);
  const int64_t tiles = (options.cols + kTileThreads * kWidth - 1) / (kTileThreads * kWidth);
  const int64_t items = chunks_in<centered::kChunkRows>(table) * tiles;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const ChunkOfTable chunk = chunk_of<centered::kChunkRows>(table, item / tiles);
    const int64_t c = (item % tiles * kTileThreads + threadIdx.x) * kWidth;
    if (c >= options.cols) continue;
    const RowNormTensor& tensor = table.tensors[chunk.tensor];
    Pack<double, kWidth> sums = {};
    for (int64_t first = chunk.begin; first < chunk.end; first += kRowsAhead) {
      Pack<Param, kWidth> g[kRowsAhead];
      Pack<Momentum, kWidth> m[kRowsAhead];
#pragma unroll
      for (int b = 0; b < kRowsAhead; ++b) {
        if (first + b >= chunk.end) continue;
        const row_norm::RowPlace place{chunk.matrix, first + b};
        g[b] = load_pack<Param, kWidth>(static_cast<const Param*>(tensor.grad) +
                                        row_norm::row_start(tensor.grad_strides, place) + c);
        m[b] = load_pack<Momentum, kWidth>(static_cast<const Momentum*>(tensor.momentum) +
                                           row_norm::row_start(tensor.momentum_strides, place) + c);
      }
#pragma unroll
      for (int b = 0; b < kRowsAhead; ++b) {
        if (first + b >= chunk.end) continue;
        const row_norm::RowPlace place{chunk.matrix, first + b};
        Compute x[kWidth];
        bool unused = false;
        take_gradient(s, options.nesterov, g[b], &m[b], x, &unused);
        if (!Own::kLate) {
          store_pack(m[b], static_cast<Momentum*>(tensor.momentum) +
                               row_norm::row_start(tensor.momentum_strides, place) + c);
        }
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums.values[i] += static_cast<double>(x[i]);
      }
    }
    const auto scratch =
        centered::scratch_of<Compute>(table.scratch[chunk.tensor], tensor, options, chunk.matrix);
    store_pack(sums, scratch.sums + chunk.chunk * centered::padded(options.cols) + c);
  }
}

template <typename Param, typename Momentum, int kWidth>
__global__ void __launch_bounds__(kTileThreads, 4)
    centered_update(const __grid_constant__ CenteredTable table,
                    const __grid_constant__ RowNormOptions options) {
  using Compute = typename ComputeType<Param>::type;
  using Own = Directions<Param, Momentum, Compute>;
  constexpr int kBatch = kRowsAhead / 2;
  if (row_norm::overflowed(options)) return;
  const Own directions(options);
  const int64_t tiles = (options.cols + kTileThreads * kWidth - 1) / (kTileThreads * kWidth);
  const int64_t items = chunks_in<centered::kChunkRows>(table) * tiles;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const ChunkOfTable chunk = chunk_of<centered::kChunkRows>(table, item / tiles);
    const int64_t c = (item % tiles * kTileThreads + threadIdx.x) * kWidth;
    if (c >= options.cols) continue;
    const RowNormTensor& tensor = table.tensors[chunk.tensor];
    const auto scratch =
        centered::scratch_of<Compute>(table.scratch[chunk.tensor], tensor, options, chunk.matrix);
    const auto mean = load_pack<Compute, kWidth>(scratch.mean + c);
    const auto unit_mean = load_pack<Compute, kWidth>(scratch.unit_mean + c);
    for (int64_t first = chunk.begin; first < chunk.end; first += kBatch) {
      Pack<Param, kWidth> g[kBatch] = {};
      Pack<Param, kWidth> p[kBatch];
      Pack<Momentum, kWidth> m[kBatch];
      centered::RowScale<Compute> scales[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (first + b >= chunk.end) continue;
        const Row<Param, Momentum, Compute> row(tensor, options, {chunk.matrix, first + b});
        scales[b] = scratch.rows[first + b];
        if (directions.reads_grad()) g[b] = load_pack<Param, kWidth>(row.grad + c);
        m[b] = load_pack<Momentum, kWidth>(row.momentum + c);
        p[b] = load_pack<Param, kWidth>(row.param + c);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (first + b >= chunk.end) continue;
        const Row<Param, Momentum, Compute> row(tensor, options, {chunk.matrix, first + b});
        Compute y[kWidth];
        directions.again(g[b], &m[b], y);
        if (Own::kLate) store_pack(m[b], row.momentum + c);
        if (scales[b].moves == Compute(0)) continue;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          y[i] = centered::unit(y[i] - mean.values[i], scales[b]) - unit_mean.values[i];
        }
        update(row, options, c, &p[b], row.step_size(), y, Compute(1));
        store_pack(p[b], row.param + c);
      }
    }
  }
}

// ---- Second pass: lengths of rows, and sums of unit rows

constexpr int kUnitThreads = 256;
// Up to here a warp takes a row, so that eight are on their way at once and stay in cache together.
constexpr int64_t kWarpColumns = 2048;
// Beyond, the block takes them one after the other. So many are then added to the sums at once,
// which go to memory and back each time.
constexpr int kWideRows = 4;

template <typename Param, typename Momentum, int kRowThreads, int kWidth>
__global__ void __launch_bounds__(kUnitThreads, 2)
    centered_units(const __grid_constant__ CenteredTable table,
                   const __grid_constant__ RowNormOptions options) {
  using Compute = typename ComputeType<Param>::type;
  using Own = Directions<Param, Momentum, Compute>;
  constexpr int kTeams = kUnitThreads / kRowThreads;
  constexpr int kRows = kTeams > 1 ? kTeams : kWideRows;
  constexpr int kBatch = kWidth > 4 ? 2 : 4;

  __shared__ int32_t keys[kWarp];
  __shared__ Compute team_sums[kWarp];
  __shared__ centered::RowScale<Compute> scales[kRows];
  if (row_norm::overflowed(options)) return;
  const RowTeam<Compute, kRowThreads> team{keys, team_sums};
  const Own directions(options);
  const bool reads_grad = directions.reads_grad() || options.gradient_support;
  const int64_t cols = options.cols;
  const int own_team = threadIdx.x / kRowThreads;

  const int64_t chunks = chunks_in<centered::kUnitRows>(table);
  for (int64_t index = blockIdx.x; index < chunks; index += gridDim.x) {
    const ChunkOfTable chunk = chunk_of<centered::kUnitRows>(table, index);
    const RowNormTensor& tensor = table.tensors[chunk.tensor];
    const auto scratch =
        centered::scratch_of<Compute>(table.scratch[chunk.tensor], tensor, options, chunk.matrix);
    Compute* sums = scratch.unit_sums + chunk.chunk * centered::padded(cols);
    const auto difference = [&](int64_t c, const Pack<Param, kWidth>& g, Pack<Momentum, kWidth> m,
                                Compute(&d)[kWidth]) {
      directions.again(g, &m, d);
      const auto mean = load_pack<Compute, kWidth>(scratch.mean + c);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) d[i] -= mean.values[i];
    };

    for (int64_t first = chunk.begin; first < chunk.end; first += kRows) {
      // The length of this thread's row, summed under the scale of what has been seen, and
      // rescaled, exactly, as that grows. The same for all threads of a row, so that no barrier is
      // missed.
      for (int r = own_team; r < kRows && first + r < chunk.end; r += kTeams) {
        const Row<Param, Momentum, Compute> row(tensor, options, {chunk.matrix, first + r});
        const auto column = [&](int64_t pack) {
          return pack_column(pack, threadIdx.x % kRowThreads, kRowThreads, kWidth);
        };
        int32_t key = 0;
        bool has_gradient = false;
        Compute squares = 0;
        Compute scale;
        row_norm::prescale(key, &scale);
        const auto rescale = [&](int32_t larger_key) {
          Compute smaller_scale;
          row_norm::prescale(larger_key, &smaller_scale);
          const Compute ratio = smaller_scale / scale;
          squares *= ratio * ratio;
          scale = smaller_scale;
          key = larger_key;
        };
        for (int64_t batch = 0; column(batch) < cols; batch += kBatch) {
          Pack<Param, kWidth> g[kBatch] = {};
          Pack<Momentum, kWidth> m[kBatch];
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            const int64_t c = column(batch + b);
            if (c >= cols) continue;
            if (reads_grad) g[b] = load_pack<Param, kWidth>(row.grad + c);
            m[b] = load_pack<Momentum, kWidth>(row.momentum + c);
          }
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            const int64_t c = column(batch + b);
            if (c >= cols) continue;
            Compute d[kWidth];
            difference(c, g[b], m[b], d);
            int32_t pack_key = 0;
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
              pack_key = ::max(pack_key, row_norm::magnitude_key(d[i]));
              has_gradient |= load(g[b].values[i]) != Compute(0);
            }
            if (pack_key > key) rescale(pack_key);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
              const Compute y = d[i] * scale;
              squares += y * y;
            }
          }
        }
        rescale(team.max(key, &has_gradient));
        squares = team.sum(squares);
        if (threadIdx.x % kRowThreads == 0) {
          const centered::RowScale<Compute> found{
              scale, squares == Compute(0) ? Compute(0) : Compute(1) / sqrt(squares),
              Compute(has_gradient || !options.gradient_support)};
          scales[r] = found;
          scratch.rows[first + r] = found;
        }
      }
      __syncthreads();

      // The same packs of columns by the same threads for all rows of the chunk, so that a thread
      // reads back its own sums.
      for (int64_t pack = 0;; ++pack) {
        const int64_t c = pack_column(pack, threadIdx.x, kUnitThreads, kWidth);
        if (c >= cols) break;
        Pack<Compute, kWidth> stored = {};
        if (first != chunk.begin) stored = load_pack<Compute, kWidth>(sums + c);
        double total[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) total[i] = static_cast<double>(stored.values[i]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (first + r >= chunk.end) continue;
          const Row<Param, Momentum, Compute> row(tensor, options, {chunk.matrix, first + r});
          Pack<Param, kWidth> g = {};
          if (directions.reads_grad()) g = load_pack<Param, kWidth>(row.grad + c);
          Compute d[kWidth];
          difference(c, g, load_pack<Momentum, kWidth>(row.momentum + c), d);
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            total[i] += static_cast<double>(centered::unit(d[i], scales[r]));
          }
        }
#pragma unroll
        for (int i = 0; i < kWidth; ++i) stored.values[i] = static_cast<Compute>(total[i]);
        store_pack(stored, sums + c);
      }
      __syncthreads();  // before the scales of the next rows
    }
  }
}

// ---- Means: a column's chunks are dealt out to 32 lanes, whose sums are folded by halves

constexpr int kMeanColumns = 32;
constexpr int kMeanLanes = 32;

template <typename Compute, bool kOfUnits>
__global__ void __launch_bounds__(kMeanColumns* kMeanLanes)
    centered_mean(const __grid_constant__ CenteredTable table,
                  const __grid_constant__ RowNormOptions options) {
  __shared__ double lanes[kMeanLanes][kMeanColumns];
  if (row_norm::overflowed(options)) return;
  const int64_t tiles = (options.cols + kMeanColumns - 1) / kMeanColumns;
  const int column = threadIdx.x % kMeanColumns;
  const int lane = threadIdx.x / kMeanColumns;
  const int64_t items = chunks_in<kAllRows>(table) * tiles;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const ChunkOfTable place = chunk_of<kAllRows>(table, item / tiles);
    const RowNormTensor& tensor = table.tensors[place.tensor];
    const auto scratch =
        centered::scratch_of<Compute>(table.scratch[place.tensor], tensor, options, place.matrix);
    const int64_t c = item % tiles * kMeanColumns + column;
    const int64_t chunks =
        centered::chunks_of(tensor.inner, kOfUnits ? centered::kUnitRows : centered::kChunkRows);
    double total = 0;
    if (c < options.cols) {
#pragma unroll 4
      for (int64_t chunk = lane; chunk < chunks; chunk += kMeanLanes) {
        const int64_t at = chunk * centered::padded(options.cols) + c;
        total += kOfUnits ? static_cast<double>(scratch.unit_sums[at]) : scratch.sums[at];
      }
    }
    lanes[lane][column] = total;
    __syncthreads();
    for (int half = kMeanLanes / 2; half > 0; half /= 2) {
      if (lane < half) lanes[lane][column] += lanes[lane + half][column];
      __syncthreads();
    }
    if (lane == 0 && c < options.cols) {
      Compute* mean = kOfUnits ? scratch.unit_mean : scratch.mean;
      mean[c] = static_cast<Compute>(lanes[0][column] / static_cast<double>(tensor.inner));
    }
    __syncthreads();  // before the next item's lanes
  }
}

// ---- Launch

unsigned grid_for(int64_t items) {
  constexpr int64_t kMost = int64_t{1} << 30;  // blocks go on to further items
  return static_cast<unsigned>(std::min(items, kMost));
}

template <typename Param, typename Momentum, int kWidth>
cudaError_t launch_passes(const CenteredTable& table, const RowNormOptions& options,
                          cudaStream_t stream) {
  using Compute = typename ComputeType<Param>::type;
  const int64_t tiles = (options.cols + kTileThreads * kWidth - 1) / (kTileThreads * kWidth);
  const unsigned tile_grid = grid_for(chunks_in<centered::kChunkRows>(table) * tiles);
  const int64_t mean_tiles = (options.cols + kMeanColumns - 1) / kMeanColumns;
  const auto mean = [&](const auto kernel) {
    return launch(grid_for(chunks_in<kAllRows>(table) * mean_tiles), kMeanColumns * kMeanLanes, 0,
                  stream, kernel, table, options);
  };
  cudaError_t error = launch(tile_grid, kTileThreads, 0, stream,
                             centered_sums<Param, Momentum, kWidth>, table, options);
  if (error != cudaSuccess) return error;
  error = mean(centered_mean<Compute, false>);
  if (error != cudaSuccess) return error;
  const auto units = options.cols <= kWarpColumns
                         ? centered_units<Param, Momentum, kWarp, kWidth>
                         : centered_units<Param, Momentum, kUnitThreads, kWidth>;
  error = launch(grid_for(chunks_in<centered::kUnitRows>(table)), kUnitThreads, 0, stream, units,
                 table, options);
  if (error != cudaSuccess) return error;
  error = mean(centered_mean<Compute, true>);
  if (error != cudaSuccess) return error;
  return launch(tile_grid, kTileThreads, 0, stream, centered_update<Param, Momentum, kWidth>, table,
                options);
}

template <typename Param, typename Momentum>
cudaError_t step(const RowNormTensor* tensors, int64_t count, const RowNormOptions& options,
                 void* scratch, cudaStream_t stream) {
  constexpr int kWidth = pack_width(sizeof(Param), sizeof(Momentum));
  CenteredTable table;
  for (const bool vectors : {true, false}) {
    char* next = static_cast<char*>(scratch);
    for (int64_t begin = 0; begin < count;) {
      begin = fill_table(tensors, count, begin, vectors, options, sizeof(Param), sizeof(Momentum),
                         &next, &table);
      if (table.count == 0) continue;
      const cudaError_t error = vectors
                                    ? launch_passes<Param, Momentum, kWidth>(table, options, stream)
                                    : launch_passes<Param, Momentum, 1>(table, options, stream);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t centered_row_norm_step(const RowNormTensor* tensors, int64_t count,
                                   const RowNormOptions& options, void* scratch,
                                   cudaStream_t stream) {
  if (!centered_row_norm_supports(options)) return cudaErrorInvalidValue;
  if (options.cols == 0) return cudaSuccess;
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
