// After the polar iteration, on CUDA: the parameters. The formulas stand in kernels/polar_update.h,
// the division of work in polar_update_tiles.h.

#include <type_traits>

#include "launch.cuh"
#include "polar_update.cuh"
#include "polar_update_packs.cuh"
#include "polar_update_tiles.h"

namespace erlangen::kernels::cuda {
namespace {

// What an element's parameter takes.
template <typename Compute>
struct Change {
  Compute scale, length, lost;
  bool cautious;

  __device__ __forceinline__ Compute moved(Compute p, Compute x) const {
    const Compute y = x * scale;
    return norm_step::updated(p, cautious ? norm_step::cautiously(lost, p, y) : lost, length, y);
  }
};

template <typename Param, typename Compute>
__device__ __forceinline__ void update_four(const Change<Compute>& change,
                                            const Compute (&x)[kPolarPack], Four<Param>* param) {
#pragma unroll
  for (int i = 0; i < kPolarPack; ++i) {
    store(change.moved(load(param->values[i]), x[i]), &param->values[i]);
  }
}

// With stochastic rounding. The pack begins at row r and column c; where it is whole, its elements
// share the words of one counter.
__device__ __forceinline__ void round_four(const Change<float>& change,
                                           const float (&x)[kPolarPack], Four<__nv_bfloat16>* param,
                                           const RoundingNoise& noise, const Place& place,
                                           int64_t r, int64_t c, bool whole) {
  const PolarUpdateOptions& options = place.options;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < kPolarPack; ++i) {
    uint32_t word;
    if (whole) {
      if (i == 0) {
        const int64_t element = options.element_offset + place.at(options.element_strides, r, c);
        noise_words(noise, static_cast<uint64_t>(element) / 4, words);
      }
      word = words[i];
    } else {
      const int64_t element = options.element_offset + place.at(options.element_strides, r, c + i);
      noise_words(noise, static_cast<uint64_t>(element) / 4, words);
      const uint32_t high = element & 1 ? words[3] : words[2];
      word = element & 2 ? high : element & 1 ? words[1] : words[0];
    }
    param->values[i] =
        __ushort_as_bfloat16(stochastic_bfloat16(change.moved(load(param->values[i]), x[i]), word));
  }
}

template <typename Param, typename X>
__global__ void __launch_bounds__(kPolarThreads, 2)
    polar_update_parameter(const __grid_constant__ PolarUpdateOptions options,
                           const __grid_constant__ PolarScratch scratch, int64_t tiles) {
  using Compute = typename ComputeType<Param>::type;
  __shared__ TurnedTile<X> turned;
  if (polar_update::overflowed(options)) return;
  const bool packs = packs_fit(options);
  const int64_t run = options.cols / options.segments;
  const int pack_row = threadIdx.x / kPolarTilePacks;
  const int pack_col = threadIdx.x % kPolarTilePacks * kPolarPack;

  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const PolarTile tile = polar_tile(options.rows, options.cols, t);
    const int64_t tensor = tile.matrix / options.matrices;
    const PolarTensor& own = scratch.tensors[tensor];
    const Place place = {options, tile, tile.matrix - tensor * options.matrices, run};
    const X* x = static_cast<const X*>(options.x) + (own.first + place.matrix) * options.x_matrix;
    Param* param = static_cast<Param*>(own.param);
    const bool whole = packs && is_aligned<Param>(param);
    const int64_t c = tile.col + pack_col;
    Four<Param> p[kPolarPacks];
    Four<X> direction[kPolarPacks];
#pragma unroll
    for (int j = 0; j < kPolarPacks; ++j) {
      const int64_t r = tile.row + pack_row + j * kPolarTileStep;
      if (r < options.rows && c < options.cols) {
        p[j] = load_four(param, place, options.param_strides, r, c, whole);
        if (!options.transposed) direction[j] = load_x_four(x + r * options.x_row, c, options.cols);
      }
    }
    if (options.transposed) {
#pragma unroll
      for (int j = 0; j < kPolarPacks; ++j) {
        const int column = pack_row + j * kPolarTileStep;
        const int64_t r = tile.row + pack_col;
        if (tile.col + column < options.cols && r < options.rows) {
          const Four<X> pack =
              load_x_four(x + (tile.col + column) * options.x_row, r, options.rows);
#pragma unroll
          for (int i = 0; i < kPolarPack; ++i) turned.values[column][pack_col + i] = pack.values[i];
        }
      }
      __syncthreads();
    }
    const Change<Compute> change = {
        static_cast<Compute>(options.scale), static_cast<Compute>(polar_update::step_size(own)),
        static_cast<Compute>(polar_update::lost(own)), options.cautious};
#pragma unroll
    for (int j = 0; j < kPolarPacks; ++j) {
      const int64_t r = tile.row + pack_row + j * kPolarTileStep;
      if (r < options.rows && c < options.cols) {
        Compute values[kPolarPack];
#pragma unroll
        for (int i = 0; i < kPolarPack; ++i) {
          values[i] = options.transposed
                          ? load(turned.values[pack_col + i][pack_row + j * kPolarTileStep])
                          : load(direction[j].values[i]);
        }
        bool rounded = false;
        if constexpr (std::is_same<Param, __nv_bfloat16>::value) {
          rounded = options.stochastic_rounding;
          if (rounded) {
            round_four(change, values, &p[j], polar_update::rounding_noise(own, options), place, r,
                       c, whole);
          }
        }
        if (!rounded) update_four(change, values, &p[j]);
        store_four(p[j], param, place, options.param_strides, r, c, whole);
      }
    }
    if (options.transposed) __syncthreads();
  }
}

}  // namespace

cudaError_t polar_update_finish(int64_t count, const PolarUpdateOptions& options, void* memory,
                                cudaStream_t stream) {
  if (!fits(count, options)) return cudaErrorInvalidValue;
  if (is_empty(count, options)) return cudaSuccess;
  const PolarScratch scratch = PolarScratch::in(memory, count, options);
  const int64_t tiles = count * options.matrices * polar_tiles(options.rows, options.cols);
  return with_param(options, [&](auto param) {
    using Param = typename decltype(param)::type;
    return with_x<typename ComputeType<Param>::type>(options, [&](auto x) {
      const Kernel kernel = polar_update_parameter<Param, typename decltype(x)::type>;
      return launch_on_all(tiles, kPolarThreads, stream, kernel, options, scratch, tiles);
    });
  });
}

}  // namespace erlangen::kernels::cuda
