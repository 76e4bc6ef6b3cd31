// Before the polar iteration, on CUDA: momentum and normalisation. The formulas stand in
// kernels/polar_update.h, the division of work in polar_update_tiles.h.
//
// A pass takes the gradient into the momentum and finds each tile's largest magnitude; one casts
// into x, with the largest of all tiles as scale, and sums each tile's squares; one divides x by
// the norm. Where x is the transpose, tiles go through shared memory, so that both sides are read
// and written in whole sectors. A block puts its matrix's tiles together when it comes to the
// matrix, in an order that does not depend on the number of blocks.

#include "launch.cuh"
#include "polar_update.cuh"
#include "polar_update_packs.cuh"
#include "polar_update_tiles.h"
#include "row_norm_device.cuh"

namespace erlangen::kernels::cuda {
namespace {

// ---- Sums over the tiles of a matrix, the same for all threads

template <typename Compute>
using Team = RowTeam<Compute, kPolarThreads>;

template <typename Compute>
__device__ __forceinline__ Compute matrix_scale(const PolarUpdateOptions& options,
                                                const Team<double>& team,
                                                const PolarScratch& scratch, int64_t matrix,
                                                int64_t tiles) {
  if (options.unscaled) return Compute(1);
  const int32_t* keys = scratch.keys + matrix * tiles;
  int32_t key = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kPolarThreads) key = ::max(key, keys[i]);
  bool unused = false;
  Compute scale;
  polar_update::prescale(options, team.max(key, &unused), &scale);
  return scale;
}

__device__ __forceinline__ double matrix_squares(const Team<double>& team,
                                                 const PolarScratch& scratch, int64_t matrix,
                                                 int64_t tiles) {
  const double* squares = scratch.squares + matrix * tiles;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kPolarThreads) sum += squares[i];
  return team.sum(sum);
}

// ---- The table

__global__ void __launch_bounds__(kPolarThreads, 1)
    polar_update_table(const __grid_constant__ PolarTable table, PolarTensor* tensors) {
  if (threadIdx.x < table.count) tensors[threadIdx.x] = table.tensors[threadIdx.x];
}

// ---- Momentum

template <typename Param, typename Momentum, bool kStores>
__global__ void __launch_bounds__(kPolarThreads, 2)
    polar_update_momentum(const __grid_constant__ PolarUpdateOptions options,
                          const __grid_constant__ PolarScratch scratch, int64_t tiles) {
  using Compute = typename ComputeType<Param>::type;
  __shared__ int32_t shared_keys[kWarp];
  __shared__ double shared_sums[kWarp];
  const Team<double> team{shared_keys, shared_sums};
  if (polar_update::overflowed(options)) return;
  const auto s = polar_update::scalars<Compute>(options);
  const bool packs = packs_fit(options);
  const int64_t run = options.cols / options.segments;
  const int pack_row = threadIdx.x / kPolarTilePacks;
  const int pack_col = threadIdx.x % kPolarTilePacks * kPolarPack;

  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const PolarTile tile = polar_tile(options.rows, options.cols, t);
    const int64_t tensor = tile.matrix / options.matrices;
    const PolarTensor& own = scratch.tensors[tensor];
    const Place place = {options, tile, tile.matrix - tensor * options.matrices, run};
    const Param* grad = static_cast<const Param*>(own.grad);
    Momentum* momentum = static_cast<Momentum*>(own.momentum);
    const bool whole = packs && is_aligned<Param>(grad) && is_aligned<Momentum>(momentum);
    const int64_t c = tile.col + pack_col;
    Four<Param> g[kPolarPacks];
    Four<Momentum> m[kPolarPacks];
#pragma unroll
    for (int j = 0; j < kPolarPacks; ++j) {
      const int64_t r = tile.row + pack_row + j * kPolarTileStep;
      if (r < options.rows && c < options.cols) {
        g[j] = load_four(grad, place, options.grad_strides, r, c, whole);
        m[j] = load_four(momentum, place, options.momentum_strides, r, c, whole);
      }
    }
    int32_t key = 0;
#pragma unroll
    for (int j = 0; j < kPolarPacks; ++j) {
      const int64_t r = tile.row + pack_row + j * kPolarTileStep;
      if (r < options.rows && c < options.cols) {
#pragma unroll
        for (int i = 0; i < kPolarPack; ++i) {
          const Compute gradient = load(g[j].values[i]);
          const Compute z =
              norm_step::blend(s, static_cast<Compute>(load(m[j].values[i])), gradient);
          const bool once_more = !kStores && options.nesterov;
          key = ::max(key,
                      norm_step::magnitude_key(once_more ? norm_step::blend(s, z, gradient) : z));
          if constexpr (kStores) store(z, &m[j].values[i]);
        }
        if constexpr (kStores) {
          store_four(m[j], momentum, place, options.momentum_strides, r, c, whole);
        }
      }
    }
    bool unused = false;
    key = team.max(key, &unused);
    if (threadIdx.x == 0) scratch.keys[t] = key;
    __syncthreads();
  }
}

// ---- Cast

// With kStored the momentum is z, and its type all that matters.
template <typename Param, typename Momentum, typename X, bool kStored>
__global__ void __launch_bounds__(kPolarThreads, sizeof(Param) > 4 ? 1 : 2)
    polar_update_cast(const __grid_constant__ PolarUpdateOptions options,
                      const __grid_constant__ PolarScratch scratch, int64_t tiles) {
  using Compute = typename ComputeType<Param>::type;
  __shared__ int32_t shared_keys[kWarp];
  __shared__ double shared_sums[kWarp];
  __shared__ TurnedTile<X> turned;
  const Team<double> team{shared_keys, shared_sums};
  if (polar_update::overflowed(options)) return;
  const auto s = polar_update::scalars<Compute>(options);
  const bool packs = packs_fit(options);
  const int64_t run = options.cols / options.segments;
  const int64_t tiles_of_matrix = polar_tiles(options.rows, options.cols);
  const int pack_row = threadIdx.x / kPolarTilePacks;
  const int pack_col = threadIdx.x % kPolarTilePacks * kPolarPack;

  int64_t matrix = -1;
  Compute scale = 0;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const PolarTile tile = polar_tile(options.rows, options.cols, t);
    const int64_t tensor = tile.matrix / options.matrices;
    const PolarTensor& own = scratch.tensors[tensor];
    const Place place = {options, tile, tile.matrix - tensor * options.matrices, run};
    X* x = static_cast<X*>(options.x) + (own.first + place.matrix) * options.x_matrix;
    const Param* grad = static_cast<const Param*>(own.grad);
    Momentum* momentum = static_cast<Momentum*>(own.momentum);
    const bool whole =
        packs && (kStored || is_aligned<Param>(grad)) && is_aligned<Momentum>(momentum);
    const int64_t c = tile.col + pack_col;
    Four<Param> g[kPolarPacks];
    Four<Momentum> m[kPolarPacks];
#pragma unroll
    for (int j = 0; j < kPolarPacks; ++j) {
      const int64_t r = tile.row + pack_row + j * kPolarTileStep;
      if (r < options.rows && c < options.cols) {
        if constexpr (!kStored) g[j] = load_four(grad, place, options.grad_strides, r, c, whole);
        m[j] = load_four(momentum, place, options.momentum_strides, r, c, whole);
      }
    }
    if (tile.matrix != matrix) {  // while the tile is on its way
      matrix = tile.matrix;
      scale = matrix_scale<Compute>(options, team, scratch, matrix, tiles_of_matrix);
    }
    Compute squares = 0;
#pragma unroll
    for (int j = 0; j < kPolarPacks; ++j) {
      const int64_t r = tile.row + pack_row + j * kPolarTileStep;
      if (r < options.rows && c < options.cols) {
        Four<X> cast;
#pragma unroll
        for (int i = 0; i < kPolarPack; ++i) {
          Compute z = load(m[j].values[i]);
          if constexpr (!kStored) {
            const Compute gradient = load(g[j].values[i]);
            z = norm_step::blend(s, z, gradient);
            store(z, &m[j].values[i]);
            if (options.nesterov) z = norm_step::blend(s, z, gradient);
          }
          store_x(z * scale, &cast.values[i]);
          const Compute y = load(cast.values[i]);
          squares += y * y;
          if (options.transposed) {
            turned.values[pack_col + i][pack_row + j * kPolarTileStep] = cast.values[i];
          }
        }
        if constexpr (!kStored) {
          store_four(m[j], momentum, place, options.momentum_strides, r, c, whole);
        }
        if (!options.transposed) store_x_four(cast, x + r * options.x_row, c, options.cols);
      }
    }
    const double sum = team.sum(squares);  // its barrier is also that of the turned tile
    if (threadIdx.x == 0) scratch.squares[t] = sum;
    if (options.transposed) {
#pragma unroll
      for (int j = 0; j < kPolarPacks; ++j) {
        const int column = pack_row + j * kPolarTileStep;
        const int64_t r = tile.row + pack_col;
        if (tile.col + column < options.cols && r < options.rows) {
          Four<X> pack;
#pragma unroll
          for (int i = 0; i < kPolarPack; ++i) pack.values[i] = turned.values[column][pack_col + i];
          store_x_four(pack, x + (tile.col + column) * options.x_row, r, options.rows);
        }
      }
    }
    __syncthreads();
  }
}

// ---- Norm

template <typename Compute, typename X>
__global__ void __launch_bounds__(kPolarThreads, sizeof(X) > 4 ? 2 : 4)
    polar_update_normalise(const __grid_constant__ PolarUpdateOptions options,
                           const __grid_constant__ PolarScratch scratch, int64_t tiles) {
  __shared__ int32_t shared_keys[kWarp];
  __shared__ double shared_sums[kWarp];
  const Team<double> team{shared_keys, shared_sums};
  if (polar_update::overflowed(options)) return;
  const int64_t rows = polar_update::x_rows(options);
  const int64_t cols = polar_update::x_cols(options);
  const int64_t tiles_of_matrix = polar_tiles(options.rows, options.cols);

  int64_t matrix = -1;
  Compute factor = 0;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const PolarTile tile = polar_tile(rows, cols, t);
    const int64_t tensor = tile.matrix / options.matrices;
    const int64_t in_batch =
        scratch.tensors[tensor].first + tile.matrix - tensor * options.matrices;
    const int64_t c = tile.col + threadIdx.x % kPolarTilePacks * kPolarPack;
    X* x = static_cast<X*>(options.x) + in_batch * options.x_matrix;
    Four<X> packs[kPolarPacks];
#pragma unroll
    for (int j = 0; j < kPolarPacks; ++j) {
      const int64_t r = tile.row + threadIdx.x / kPolarTilePacks + j * kPolarTileStep;
      if (r < rows && c < cols) packs[j] = load_x_four(x + r * options.x_row, c, cols);
    }
    if (tile.matrix != matrix) {  // while the tile is on its way
      matrix = tile.matrix;
      Compute scale = 0;
      if (options.eps > 0)
        scale = matrix_scale<Compute>(options, team, scratch, matrix, tiles_of_matrix);
      factor = polar_update::reciprocal_norm(matrix_squares(team, scratch, matrix, tiles_of_matrix),
                                             scale, options.eps);
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < kPolarPacks; ++j) {
      const int64_t r = tile.row + threadIdx.x / kPolarTilePacks + j * kPolarTileStep;
      if (r < rows && c < cols) {
#pragma unroll
        for (int i = 0; i < kPolarPack; ++i) {
          const Compute value = load(packs[j].values[i]);
          store_x(value * factor, &packs[j].values[i]);
        }
        store_x_four(packs[j], x + r * options.x_row, c, cols);
      }
    }
  }
}

// ---- Launch

template <typename Compute>
Kernel stored_momentum_kernel(const PolarUpdateOptions& options) {
  switch (options.dtype) {
    case DType::bfloat16: return polar_update_momentum<__nv_bfloat16, float, true>;
    case DType::float16: return polar_update_momentum<__half, float, true>;
    default: return polar_update_momentum<Compute, Compute, true>;
  }
}

template <typename Param, typename Momentum, typename X>
Kernel cast_kernel(const PolarUpdateOptions& options) {
  using Compute = typename ComputeType<Param>::type;
  if (polar_update::stores_direction(options)) return polar_update_cast<Compute, Compute, X, true>;
  return polar_update_cast<Param, Momentum, X, false>;
}

template <typename Param, typename Momentum>
cudaError_t prepare(int64_t count, const PolarUpdateOptions& options, const PolarScratch& scratch,
                    cudaStream_t stream) {
  using Compute = typename ComputeType<Param>::type;
  const int64_t matrices = count * options.matrices;
  const int64_t tiles = matrices * polar_tiles(options.rows, options.cols);
  const Kernel momentum = polar_update::stores_direction(options)
                              ? stored_momentum_kernel<Compute>(options)
                              : polar_update_momentum<Param, Momentum, false>;
  cudaError_t error =
      launch_on_all(tiles, kPolarThreads, stream, momentum, options, scratch, tiles);
  if (error != cudaSuccess) return error;
  return with_x<Compute>(options, [&](auto type) {
    using X = typename decltype(type)::type;
    error = launch_on_all(tiles, kPolarThreads, stream, cast_kernel<Param, Momentum, X>(options),
                          options, scratch, tiles);
    if (error != cudaSuccess || options.unscaled) return error;
    const Kernel normalise = polar_update_normalise<Compute, X>;
    const int64_t x_tiles =
        matrices * polar_tiles(polar_update::x_rows(options), polar_update::x_cols(options));
    return launch_on_all(x_tiles, kPolarThreads, stream, normalise, options, scratch, x_tiles);
  });
}

}  // namespace

int64_t polar_update_scratch_bytes(int64_t count, const PolarUpdateOptions& options) {
  return PolarScratch::bytes(count, options);
}

cudaError_t polar_update_prepare(const PolarTensor* tensors, int64_t count,
                                 const PolarUpdateOptions& options, void* memory,
                                 cudaStream_t stream) {
  if (!fits(count, options)) return cudaErrorInvalidValue;
  if (is_empty(count, options)) return cudaSuccess;
  const PolarScratch scratch = PolarScratch::in(memory, count, options);
  PolarTable table;
  for (int64_t begin = 0; begin < count; begin += table.count) {
    for (table.count = 0; table.count < kPolarTensorsPerCopy && begin + table.count < count;
         ++table.count) {
      table.tensors[table.count] = tensors[begin + table.count];
    }
    const cudaError_t error =
        launch(1, kPolarThreads, 0, stream, polar_update_table, table, scratch.tensors + begin);
    if (error != cudaSuccess) return error;
  }
  const bool low = options.momentum_dtype == DType::bfloat16;
  return with_param(options, [&](auto type) {
    using Param = typename decltype(type)::type;
    if constexpr (std::is_same<Param, double>::value) {
      return prepare<double, double>(count, options, scratch, stream);
    } else {
      return low ? prepare<Param, __nv_bfloat16>(count, options, scratch, stream)
                 : prepare<Param, float>(count, options, scratch, stream);
    }
  });
}

}  // namespace erlangen::kernels::cuda
