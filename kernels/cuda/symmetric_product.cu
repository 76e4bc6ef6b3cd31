// The symmetric product with mma.sync: D = alpha * A * B^T + beta * C below the diagonal, mirrored.
//
// A block computes a square tile of D at a time. A and B come through a ring of stages in shared
// memory (cp.async), the sums stay in registers. In the end the tile is put together in the same
// shared memory, twice: as it is and turned, so that both copies leave in rows of 16 bytes. The
// sums over k run in the order of k, the same for every tile, so that a matrix's result depends
// neither on its batch nor on the device's number of SMs. Where k is cut into parts, a part's sums
// go to the workspace as they are, and a second kernel does the rest.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.cuh"
#include "ptx.cuh"
#include "symmetric_product.cuh"
#include "symmetric_product_parts.cuh"
#include "symmetric_product_tiles.h"

namespace erlangen::kernels::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kChunk = 8;          // elements in 16 bytes
constexpr int kDepth = kMmaDepth;  // of k in a stage
constexpr int kPadding = 8;        // elements between the rows of the finished tile
constexpr int kChunksOfRow = kDepth / kChunk;

// A tile of kTile x kTile, by kWarpsM x kWarpsN warps.
template <int kTile_, int kWarpsM_, int kWarpsN_, int kStages_, int kBlocksOnSM_>
struct Shape {
  static constexpr int kTile = kTile_, kStages = kStages_, kBlocksOnSM = kBlocksOnSM_;
  static constexpr int kWarpsN = kWarpsN_;
  static constexpr int kThreads = kWarpsM_ * kWarpsN_ * kWarp;
  static constexpr int kWarpM = kTile / kWarpsM_, kWarpN = kTile / kWarpsN_;  // a warp's part
  static constexpr int kMmaM = kWarpM / 16, kMmaN = kWarpN / 8;
  static constexpr int kOperand = kTile * kDepth;  // elements of A or B in a stage
  static constexpr int kRow = kTile + kPadding;    // of the finished tile
  static constexpr int kStageElements = kStages * 2 * kOperand;
  static constexpr int kElements = kStageElements > kTile* kRow ? kStageElements : kTile* kRow;
  static_assert(kElements * 2 <= 48 * 1024, "more shared memory has to be asked for");
  static_assert(kWarpN % 16 == 0, "B comes in pairs of eight columns");
};
using LargeTile = Shape<kLargeTile, 2, 4, 3, 2>;
// Of its blocks four fit on an SM with 164 KB of shared memory or more, three on one with 100 KB.
using SmallTile = Shape<kSmallTile, 2, 2, 4, 4>;

__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float x, __half* out) { *out = __float2half_rn(x); }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16* out) {
  *out = __float2bfloat16_rn(x);
}

// A row of a stage is 64 bytes, four chunks. Two rows fill the 32 banks; the chunks of the next two
// are exchanged, so that eight rows read at one column, and two written in full, meet every bank
// once.
__device__ __forceinline__ int staged(int row, int chunk) {
  return row * kDepth + (chunk ^ ((row >> 1) & (kChunksOfRow - 1))) * kChunk;
}

// Brings rows [row0, row0 + kTile) and columns [k0, k0 + kDepth) of an n x k operand to shared
// memory, zeros outside.
template <typename S, typename T>
__device__ __forceinline__ void fetch(const T* operand, int64_t row_stride, int64_t n, int64_t k,
                                      int64_t row0, int64_t k0, T* stage) {
#pragma unroll
  for (int i = 0; i < S::kTile * kChunksOfRow / S::kThreads; ++i) {
    const int place = i * S::kThreads + threadIdx.x;
    const int row = place / kChunksOfRow, chunk = place % kChunksOfRow;
    const int64_t col = k0 + chunk * kChunk;
    int bytes = 0;
    const T* source = operand;
    if (row0 + row < n && col < k) {
      source = operand + (row0 + row) * row_stride + col;
      bytes = k - col < kChunk ? static_cast<int>(k - col) * 2 : 16;
    }
    cp_async_16(stage + staged(row, chunk), source, bytes);
  }
}

// Where an element of a warp's mma results belongs: thread `lane` holds at [0..3] the elements
// (lane / 4, 2 (lane % 4)), the one to its right, and the same eight rows below.
__device__ __forceinline__ int mma_row(int lane, int value) { return lane / 4 + value / 2 * 8; }
__device__ __forceinline__ int mma_col(int lane, int value) { return lane % 4 * 2 + value % 2; }

// Copies the finished tile in shared memory to rows from r0 and columns from c0 of D.
template <typename S, typename T>
__device__ __forceinline__ void store_tile(const T* tile, T* d, int64_t row_stride, int64_t n,
                                           int64_t r0, int64_t c0) {
  constexpr int kChunks = S::kTile / kChunk;
  for (int place = threadIdx.x; place < S::kTile * kChunks; place += S::kThreads) {
    const int row = place / kChunks, col = place % kChunks * kChunk;
    if (r0 + row >= n || c0 + col >= n) continue;
    const T* from = tile + row * S::kRow + col;
    T* to = d + (r0 + row) * row_stride + c0 + col;
    if (c0 + col + kChunk <= n) {
      *reinterpret_cast<int4*>(to) = *reinterpret_cast<const int4*>(from);
    } else {
      for (int64_t i = 0; i < n - c0 - col; ++i) to[i] = from[i];
    }
  }
}

template <typename S, typename T>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksOnSM)
    symmetric_product_kernel(const SymmetricProduct p, const Cut cut, float* const partials) {
  __shared__ __align__(128) T shared[S::kElements];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_row = warp / S::kWarpsN * S::kWarpM, warp_col = warp % S::kWarpsN * S::kWarpN;
  const int64_t across = tiles_of(p.n, S::kTile);
  const int64_t units = p.batch * cut.parts * lower_tiles(across);
  const int64_t all_stages = (p.k + kDepth - 1) / kDepth;

  for (int64_t index = blockIdx.x; index < units; index += gridDim.x) {
    const auto [tile, part] = tile_part(index, across, cut.parts);
    const int64_t first_stage = part * cut.part_steps;
    const int64_t stages = part + 1 < cut.parts ? cut.part_steps : all_stages - first_stage;
    const int64_t r0 = tile.i * S::kTile, c0 = tile.j * S::kTile;
    const T* const a = static_cast<const T*>(p.a) + tile.matrix * p.a_batch;
    const T* const b = static_cast<const T*>(p.b) + tile.matrix * p.b_batch;
    // One group of copies a stage, empty ones past the end, so that "all but the latest
    // kStages - 2 groups" always means the stage that is wanted.
    const auto fetch_stage = [&](int64_t stage) {
      if (stage < stages) {
        T* const place = shared + stage % S::kStages * 2 * S::kOperand;
        const int64_t k0 = (first_stage + stage) * kDepth;
        fetch<S>(a, p.a_row, p.n, p.k, r0, k0, place);
        fetch<S>(b, p.b_row, p.n, p.k, c0, k0, place + S::kOperand);
      }
      cp_async_commit();
    };

    float sums[S::kMmaM][S::kMmaN][4] = {};
#pragma unroll
    for (int stage = 0; stage < S::kStages - 1; ++stage) fetch_stage(stage);
    for (int64_t stage = 0; stage < stages; ++stage) {
      cp_async_wait<S::kStages - 2>();
      __syncthreads();
      // Into the place of the stage that all threads have left.
      fetch_stage(stage + S::kStages - 1);
      const T* const rows = shared + stage % S::kStages * 2 * S::kOperand;
      const T* const cols = rows + S::kOperand;
#pragma unroll
      for (int depth = 0; depth < kDepth; depth += 16) {
        uint32_t left[S::kMmaM][4], right[S::kMmaN][2];
#pragma unroll
        for (int m = 0; m < S::kMmaM; ++m) {
          // 16 x 16 of A: the upper and the lower eight rows, then the same further right.
          ldmatrix_x4(rows + staged(warp_row + m * 16 + lane % 16, depth / kChunk + lane / 16),
                      left[m]);
        }
#pragma unroll
        for (int n = 0; n < S::kMmaN; n += 2) {
          // 16 rows of B, which are columns of B^T: left and right half of the upper eight, then
          // of the lower.
          uint32_t pair[4];
          ldmatrix_x4(cols + staged(warp_col + n * 8 + lane % 8 + lane / 16 * 8,
                                    depth / kChunk + lane / 8 % 2),
                      pair);
          right[n][0] = pair[0], right[n][1] = pair[1];
          right[n + 1][0] = pair[2], right[n + 1][1] = pair[3];
        }
#pragma unroll
        for (int m = 0; m < S::kMmaM; ++m) {
#pragma unroll
          for (int n = 0; n < S::kMmaN; ++n) {
            mma_m16n8k16<T>(sums[m][n], left[m], right[n]);
          }
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // the stages are read; their memory is the tile's now

    if (cut.parts > 1) {
      float* const out = partials + index * S::kTile * S::kTile;
#pragma unroll
      for (int m = 0; m < S::kMmaM; ++m) {
#pragma unroll
        for (int n = 0; n < S::kMmaN; ++n) {
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            *reinterpret_cast<float2*>(out + (warp_row + m * 16 + mma_row(lane, i)) * S::kTile +
                                       warp_col + n * 8 + mma_col(lane, i)) =
                make_float2(sums[m][n][i], sums[m][n][i + 1]);
          }
        }
      }
      continue;
    }
    if (p.beta != 0.0f) {
      const T* const c = static_cast<const T*>(p.c) + tile.matrix * p.c_batch;
      constexpr int kChunks = S::kTile / kChunk;
      for (int place = threadIdx.x; place < S::kTile * kChunks; place += S::kThreads) {
        const int row = place / kChunks, col = place % kChunks * kChunk;
        int bytes = 0;
        const T* source = c;
        if (r0 + row < p.n && c0 + col < p.n) {
          source = c + (r0 + row) * p.c_row + c0 + col;
          bytes = p.n - c0 - col < kChunk ? static_cast<int>(p.n - c0 - col) * 2 : 16;
        }
        cp_async_16(shared + row * S::kRow + col, source, bytes);
      }
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
    }
    const auto each = [&](auto&& f) {
#pragma unroll
      for (int m = 0; m < S::kMmaM; ++m) {
#pragma unroll
        for (int n = 0; n < S::kMmaN; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            f(warp_row + m * 16 + mma_row(lane, i), warp_col + n * 8 + mma_col(lane, i),
              &sums[m][n][i]);
          }
        }
      }
    };
    T* const d = static_cast<T*>(p.d) + tile.matrix * p.d_batch;
    const bool diagonal = tile.i == tile.j;
    // Every thread reads and writes its own elements, and on the diagonal writes above it, where
    // none reads: no barrier is needed between C and D.
    each([&](int row, int col, float* sum) {
      *sum *= p.alpha;
      if (p.beta != 0.0f && !(diagonal && row < col))
        *sum += p.beta * to_float(shared[row * S::kRow + col]);
    });
    each([&](int row, int col, float* sum) {
      if (diagonal && row < col) return;
      from_float(*sum, &shared[row * S::kRow + col]);
      if (diagonal && row > col) from_float(*sum, &shared[col * S::kRow + row]);
    });
    __syncthreads();
    store_tile<S>(shared, d, p.d_row, p.n, r0, c0);
    if (!diagonal) {
      __syncthreads();
      each([&](int row, int col, float* sum) { from_float(*sum, &shared[col * S::kRow + row]); });
      __syncthreads();
      store_tile<S>(shared, d, p.d_row, p.n, c0, r0);
    }
    __syncthreads();  // before the next tile's first stages
  }
}

template <int kTile_>
struct LowerTiles {
  static constexpr int kTile = kTile_;
  int64_t across, count;

  ERLANGEN_INLINE int64_t row(int64_t index) const { return lower_tile(index, across).i * kTile; }
  ERLANGEN_INLINE int64_t column(int64_t index) const {
    return lower_tile(index, across).j * kTile;
  }
};

template <typename S, typename T>
cudaError_t launch_tiles(const SymmetricProduct& p, const MmaPlan& plan, float* partials,
                         cudaStream_t stream) {
  const LowerTiles<S::kTile> tiles = {plan.across, lower_tiles(plan.across)};
  const cudaError_t error =
      launch_on_all(p.batch * plan.cut.parts * tiles.count, S::kThreads, stream,
                    symmetric_product_kernel<S, T>, p, plan.cut, partials);
  if (error != cudaSuccess || plan.cut.parts == 1) return error;
  return launch_add_parts<T>(p, tiles, plan.cut.parts, partials, stream);
}

template <typename T>
cudaError_t launch_product(const SymmetricProduct& p, float* partials, cudaStream_t stream) {
  const MmaPlan plan = mma_plan(p.n, p.k);
  return plan.tile == kLargeTile ? launch_tiles<LargeTile, T>(p, plan, partials, stream)
                                 : launch_tiles<SmallTile, T>(p, plan, partials, stream);
}

}  // namespace

size_t symmetric_product_workspace(const SymmetricProduct& p) {
  const MmaPlan plan = mma_plan(p.n, p.k);
  if (plan.cut.parts == 1) return 0;
  return sizeof(float) * plan.tile * plan.tile *
         partial_tile(plan.cut.parts, lower_tiles(plan.across), p.batch, 0, 0);
}

cudaError_t symmetric_product(const SymmetricProduct& product, void* workspace,
                              cudaStream_t stream) {
  if (!symmetric_product_supports(product)) return cudaErrorInvalidValue;
  if (product.batch == 0 || product.n == 0) return cudaSuccess;
  if (workspace == nullptr && symmetric_product_workspace(product) > 0) {
    return cudaErrorInvalidValue;
  }
  float* const partials = static_cast<float*>(workspace);
  return product.dtype == DType::float16 ? launch_product<__half>(product, partials, stream)
                                         : launch_product<__nv_bfloat16>(product, partials, stream);
}

}  // namespace erlangen::kernels::cuda
