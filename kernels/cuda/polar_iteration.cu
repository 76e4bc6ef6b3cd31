// The polar iteration of small matrices with mma.sync, a block a matrix.
//
// R, Q and Z of the Gram form are k x k and stay in the block's shared memory, padded with zeros to
// 64 or 128 rows. X is too large for that: its columns come through a ring of stages (cp.async), in
// one pass a segment. A pass takes a stage of X, makes Q X of it in place, sends that back to where
// it came from, and adds its share to the next segment's R. So X is read once more than there are
// segments, and written once a segment; it lies in L2 meanwhile. Where the device has the memory,
// and there are no more matrices than multiprocessors, so that a block has one to itself, the ring
// is as long as X: then X is read once and written once. The bits are the same.
//
// Rounded to half precision, once each: R, Z, R Z + a R, (Z + a I) R (Z + a I), Q, and X after each
// segment; sums are in float32. Z + a I is rounded after Z where both are needed, else at once. All
// but X are symmetric: above the diagonal they are copies of what is below. Both halves are
// multiplied all the same: of the time of 64 x 1024 the squares are a seventh, and a triangle of so
// few tiles does not divide evenly among the warps.
//
// Segments of one step and of two suffice: half precision starts again after two. The standard form
// is segments of one step; that it rounds Z + a I, not Z, costs X as much as X's own rounding. Sums
// run in the order of the columns, whatever the batch and the device.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.cuh"
#include "polar_iteration.cuh"
#include "ptx.cuh"
#include "storage.cuh"

namespace erlangen::kernels::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kChunk = 8;   // elements in 16 bytes
constexpr int kDepth = 16;  // of a tensor-core instruction

// kRows: what k is padded to; kCols: columns of X in a stage; kStages: how many there are at least.
// Consumer GPUs have 99 KiB for a block; others take kBlocksOnSM of them.
template <int kRows_, int kCols_, int kStages_, int kBlocksOnSM_>
struct Shape {
  static constexpr int kRows = kRows_, kCols = kCols_, kStages = kStages_;
  static constexpr int kBlocksOnSM = kBlocksOnSM_;
  static constexpr int kSquare = kRows * kRows, kStage = kRows * kCols;  // elements
  // A square is two warps high, 32 columns of it wide; warps that are left sum other columns.
  static constexpr int kSquareAcross = kRows / 32;
  static constexpr int kWarpsOfSquare = 2 * kSquareAcross;
  static constexpr int kGroups = kWarps / kWarpsOfSquare;
  static constexpr int kSquareM = kRows / 2 / 16, kSquareN = 4;  // instructions of a warp
  // A stage of Q X is cut into 32 x 32.
  static constexpr int kStageAcross = kCols / 32;
  static constexpr size_t shared_bytes(int64_t stages) {
    return 2 * (2 * kSquare + stages * kStage) + 4 * (kGroups - 1) * kSquare;
  }
  static_assert(kRows / 32 * kStageAcross == kWarps && kGroups <= 2, "all warps at work");
  static_assert(2 * (2 * kSquare + kStages * kStage) + 4 * (kGroups - 1) * kSquare <= 99 * 1024,
                "consumer GPUs have no more");
};
using Rows64 = Shape<64, 128, 3, 2>;
using Rows128 = Shape<128, 64, 2, 1>;

// Where an element of a matrix of kCols columns lies in shared memory. Eight rows, read at one
// chunk of 16 bytes, meet every bank once.
template <int kCols>
__device__ __forceinline__ int place(int row, int col) {
  return row * kCols + ((col / kChunk ^ (row & 7)) * kChunk) + col % kChunk;
}

// sums += A B for 16 kM rows of A from `row0` on and 8 kN columns of B from `col0` on, over the
// columns [begin, end) of A, whose rows are kColsA long. B lies in rows of kColsB elements: its own
// rows, or, where kTransposed, its columns.
template <int kColsA, int kColsB, bool kTransposed, int kM, int kN, typename T>
__device__ __forceinline__ void multiply(const T* a, const T* b, int row0, int col0, int begin,
                                         int end, float (&sums)[kM][kN][4]) {
  const int lane = threadIdx.x % kWarp;
  for (int depth = begin; depth < end; depth += kDepth) {
    uint32_t left[kM][4], right[kN][2];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      // 16 x 16 of A: the upper and the lower eight rows, then the same further right.
      ldmatrix_x4(a + place<kColsA>(row0 + m * 16 + lane % 16, depth + lane / 16 * kChunk),
                  left[m]);
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      // 16 columns of B: the first and the second eight of its rows, for the left eight columns,
      // then for the right.
      uint32_t pair[4];
      if constexpr (kTransposed) {
        ldmatrix_x4(b + place<kColsB>(col0 + n * 8 + lane % 8 + lane / 16 * 8,
                                      depth + lane / 8 % 2 * kChunk),
                    pair);
      } else {
        ldmatrix_x4_trans(b + place<kColsB>(depth + lane % 16, col0 + n * 8 + lane / 16 * kChunk),
                          pair);
      }
      right[n][0] = pair[0], right[n][1] = pair[1];
      right[n + 1][0] = pair[2], right[n + 1][1] = pair[3];
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) mma_m16n8k16<T>(sums[m][n], left[m], right[n]);
    }
  }
}

// A thread's sums of a square.
template <typename S>
using Sums = float[S::kSquareM][S::kSquareN][4];

// This warp's part of a square, and which share of the columns it sums.
template <typename S>
struct SquareTile {
  int row0, col0, group;
  __device__ SquareTile() {
    const int warp = threadIdx.x / kWarp;
    row0 = warp % S::kWarpsOfSquare / S::kSquareAcross * (S::kSquareM * 16);
    col0 = warp % S::kSquareAcross * (S::kSquareN * 8);
    group = warp / S::kWarpsOfSquare;
  }
};

// D <- alpha * sums + beta * C + diagonal * I below the diagonal, and its mirror. A barrier of the
// block comes first, and one last: the sums' operands may be D. C may be D as well: every thread
// reads its own elements, on and below the diagonal, before it writes them.
template <typename S, typename T>
__device__ __forceinline__ void finish_square(const Sums<S>& sums, float alpha, float beta,
                                              float diagonal, const T* c, T* d, float* other) {
  const SquareTile<S> tile;
  const int lane = threadIdx.x % kWarp;
  float* const mine = other + threadIdx.x % (S::kWarpsOfSquare * kWarp);
  const auto each = [&](auto&& f) {
#pragma unroll
    for (int m = 0; m < S::kSquareM; ++m) {
#pragma unroll
      for (int n = 0; n < S::kSquareN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          f(tile.row0 + m * 16 + lane / 4 + i / 2 * 8, tile.col0 + n * 8 + lane % 4 * 2 + i % 2,
            sums[m][n][i], mine + ((m * S::kSquareN + n) * 4 + i) * S::kWarpsOfSquare * kWarp);
        }
      }
    }
  };
  if (tile.group == 1) each([&](int, int, float sum, float* slot) { *slot = sum; });
  __syncthreads();
  if (tile.group == 0) {
    each([&](int row, int col, float sum, const float* slot) {
      if (row < col) return;
      if (S::kGroups > 1) sum += *slot;
      float value = alpha * sum;
      if (beta != 0.0f) value = fmaf(beta, load(c[place<S::kRows>(row, col)]), value);
      if (row == col) value += diagonal;
      store(value, &d[place<S::kRows>(row, col)]);
      store(value, &d[place<S::kRows>(col, row)]);
    });
  }
  __syncthreads();
}

// D <- alpha * A B + beta * C + diagonal * I, where A and B are symmetric and commute.
template <typename T>
struct Square {
  float alpha;
  const T *a, *b;
  float beta;
  const T* c;
  T* d;
  float diagonal = 0.0f;
};

template <typename S, typename T>
__device__ __forceinline__ void square(const Square<T>& p, int k, float* other) {
  const SquareTile<S> tile;
  Sums<S> sums = {};
  constexpr int kShare = S::kRows / S::kGroups;
  const int begin = tile.group * kShare;
  if (p.alpha != 0.0f) {
    multiply<S::kRows, S::kRows, true>(p.a, p.b, tile.row0, tile.col0, begin,
                                       min(begin + kShare, k), sums);
  }
  finish_square<S>(sums, p.alpha, p.beta, p.diagonal, p.c, p.d, other);
}

template <typename S>
__host__ __device__ int64_t stages_of(const PolarIteration& p) {
  return (p.l + S::kCols - 1) / S::kCols;
}

template <typename S, typename T>
__global__ void __launch_bounds__(kThreads, S::kBlocksOnSM)
    polar_iteration_kernel(const __grid_constant__ PolarIteration p, int ring_length) {
  T* const r = static_cast<T*>(dynamic_shared());
  T* const q = r + S::kSquare;
  float* const other = reinterpret_cast<float*>(q + S::kSquare);
  T* const ring = reinterpret_cast<T*>(other + (S::kGroups - 1) * S::kSquare);
  T* const x = static_cast<T*>(p.x) + static_cast<int64_t>(blockIdx.x) * p.matrix;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int k = static_cast<int>(p.k);
  const int64_t stages = stages_of<S>(p);
  const bool resident = stages <= ring_length;  // X stays in shared memory
  bool first = true, last = false;              // of the passes

  // f(row, chunk's column in the stage, chunk's elements within X) for this thread's chunks.
  const auto each_chunk = [&](int64_t stage, auto&& f) {
    constexpr int kChunks = S::kCols / kChunk;
#pragma unroll
    for (int i = 0; i < S::kStage / kChunk / kThreads; ++i) {
      const int row = (i * kThreads + threadIdx.x) / kChunks;
      const int col = (i * kThreads + threadIdx.x) % kChunks * kChunk;
      const int64_t left = p.l - stage * S::kCols - col;
      f(row, col, row >= k || left <= 0 ? 0 : left < kChunk ? static_cast<int>(left) : kChunk);
    }
  };
  const auto place_of = [&](int64_t stage) {
    return ring + static_cast<int>(stage % ring_length) * S::kStage;
  };
  // One group of copies a stage, empty ones past the end, so that "all but the latest kStages - 2
  // groups" always means the stage that is wanted.
  const auto fetch_stage = [&](int64_t stage) {
    if (stage < stages && (first || !resident)) {
      T* const to = place_of(stage);
      each_chunk(stage, [&](int row, int col, int count) {
        const T* const from = x + row * p.row + stage * S::kCols + col;
        cp_async_16(to + place<S::kCols>(row, col), count > 0 ? from : x, 2 * count);
      });
    }
    cp_async_commit();
  };
  const auto fetch_first_stages = [&] {
#pragma unroll
    for (int stage = 0; stage < S::kStages - 1; ++stage) fetch_stage(stage);
  };
  // X <- Q X in a stage, and in global memory unless the next pass finds it here.
  const auto apply = [&](int64_t stage) {
    T* const data = place_of(stage);
    const int row0 = warp / S::kStageAcross * 32, col0 = warp % S::kStageAcross * 32;
    float sums[2][4][4] = {};
    multiply<S::kRows, S::kCols, false>(q, data, row0, col0, 0, k, sums);
    __syncthreads();  // the stage is read
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          Pack<T, 2> pair;
          store(sums[m][n][i], &pair.values[0]);
          store(sums[m][n][i + 1], &pair.values[1]);
          store_pack(pair, data + place<S::kCols>(row0 + m * 16 + lane / 4 + i * 4,
                                                  col0 + n * 8 + lane % 4 * 2));
        }
      }
    }
    __syncthreads();
    if (resident && !last) return;
    each_chunk(stage, [&](int row, int col, int count) {
      const T* const from = data + place<S::kCols>(row, col);
      T* const to = x + row * p.row + stage * S::kCols + col;
      if (count == kChunk) {
        *reinterpret_cast<int4*>(to) = *reinterpret_cast<const int4*>(from);
      } else {
#pragma unroll 1
        for (int i = 0; i < count; ++i) to[i] = from[i];
      }
    });
  };

  fetch_first_stages();
  for (int step = 0;;) {
    last = step == p.steps;
    const SquareTile<S> tile;
    Sums<S> sums = {};
    for (int64_t stage = 0; stage < stages; ++stage) {
      cp_async_wait<S::kStages - 2>();
      __syncthreads();
      // Into the place of the stage that all threads have left.
      fetch_stage(stage + S::kStages - 1);
      if (!first) apply(stage);
      if (last) continue;
      const T* const data = place_of(stage);
      constexpr int kShare = S::kCols / S::kGroups;
      const int64_t left = p.l - stage * S::kCols;
      const int cols = left < S::kCols ? static_cast<int>(left) : S::kCols;
      const int begin = tile.group * kShare;
      multiply<S::kCols, S::kCols, true>(data, data, tile.row0, tile.col0, begin,
                                         min(begin + kShare, cols), sums);
    }
    if (last) return;
    finish_square<S>(sums, 1.0f, 0.0f, 0.0f, r, r, other);
    first = false;
    fetch_first_stages();  // of the next pass; after the barriers just now, X is written
    const bool two = p.period == 2 && step > 0 && step + 1 < p.steps;
    // One loop, so that its body, which is long, is there once.
#pragma unroll 1
    for (int i = 0; i < (two ? 5 : 1); ++i) {
      const int now = step + i / 3;
      const float a = p.a[now], b = p.b[now], c = p.c[now];
      Square<T> next = {1.0f, q, r, a, r, r};                          // 2: (Z + a I)(R Z + a R)
      if (i == 0) next = Square<T>{c, r, r, b, r, q, two ? 0.0f : a};  // Z, or Q = Z + a I
      if (i == 1) next = Square<T>{1.0f, r, q, a, r, r};               // R Z + a R
      if (i == 3) next = Square<T>{c, r, r, b, r, r};                  // the second step's Z
      if (i == 4) next = Square<T>{1.0f, q, r, a, q, q};               // Q Z + a Q
      if (i == 3 && threadIdx.x < S::kRows) {  // the first step's Q = Z + a I
        T* const diagonal = &q[place<S::kRows>(threadIdx.x, threadIdx.x)];
        store(load(*diagonal) + p.a[step], diagonal);
      }
      square<S>(next, k, other);
    }
    step += two ? 2 : 1;
  }
}

template <typename S, typename T>
cudaError_t launch_iteration(const PolarIteration& p, cudaStream_t stream) {
  int device = 0, sms = 0, most_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  const int64_t stages = stages_of<S>(p);
  const bool resident = stages > S::kStages && p.batch <= sms &&
                        S::shared_bytes(stages) <= static_cast<size_t>(most_bytes);
  const int ring = resident ? static_cast<int>(stages) : S::kStages;
  return launch(static_cast<unsigned>(p.batch), kThreads, S::shared_bytes(ring), stream,
                polar_iteration_kernel<S, T>, p, ring);
}

template <typename T>
cudaError_t launch_by_size(const PolarIteration& p, cudaStream_t stream) {
  return p.k <= Rows64::kRows ? launch_iteration<Rows64, T>(p, stream)
                              : launch_iteration<Rows128, T>(p, stream);
}

}  // namespace

cudaError_t polar_iteration(const PolarIteration& iteration, cudaStream_t stream) {
  if (!polar_iteration_supports(iteration)) return cudaErrorInvalidValue;
  if (iteration.batch == 0 || iteration.k == 0 || iteration.l == 0 || iteration.steps == 0) {
    return cudaSuccess;
  }
  return iteration.dtype == DType::float16 ? launch_by_size<__half>(iteration, stream)
                                           : launch_by_size<__nv_bfloat16>(iteration, stream);
}

}  // namespace erlangen::kernels::cuda
