// The row-norm step on CUDA. The formula stands in kernels/row_norm.h, the division of work in
// row_norm_tiles.h.
//
// Up to 128 bytes of direction a thread, a row stays in registers from its gradient to its new
// parameter, and memory sees each of g, m and p once: 20 bytes an element in float32. Longer rows
// are read twice. A warp or a block owns a row; all sums run in a fixed order.

#include "launch.cuh"
#include "ptx.cuh"
#include "row_norm.cuh"
#include "row_norm_device.cuh"
#include "row_norm_rows.cuh"
#include "row_norm_tiles.h"

namespace erlangen::kernels::cuda {
namespace {

constexpr int kBytesInRegisters = 128;  // of direction, a thread

// ---- Rows that fit into registers

// A block holds four rows where a row is a warp's. At 128 registers a thread an SM holds 512
// threads, which keep 16 to 32 KB of loads in flight. Column by column there are 32 addresses to
// hold, which take 168.
constexpr int block_threads(int threads) { return threads == kWarp ? 4 * kWarp : threads; }
constexpr int blocks_on_sm(int threads, int width) {
  return (width == 1 ? 384 : 512) / block_threads(threads);
}

template <typename Param, typename Momentum, int kThreads, int kWidth, int kPacks>
__global__ void __launch_bounds__(block_threads(kThreads), blocks_on_sm(kThreads, kWidth))
    row_norm_in_registers(const __grid_constant__ RowTable table,
                          const __grid_constant__ RowNormOptions options) {
  using Compute = typename ComputeType<Param>::type;
  // Packs asked for before the first is used. A pack is two or three 16-byte loads; more of them
  // ahead would spill.
  constexpr bool kLong = kPacks * kWidth * sizeof(Compute) > kBytesInRegisters;
  constexpr int kColumnsAhead = kLong ? 4 : sizeof(Compute) == 8 ? 8 : 16;
  constexpr int kAhead = kColumnsAhead < kWidth ? 1 : kColumnsAhead / (kWidth < 4 ? 4 : kWidth);
  constexpr int kBatch = kPacks < kAhead ? kPacks : kAhead;
  static_assert(kPacks % kBatch == 0, "whole batches");

  __shared__ int32_t keys[kWarp];
  __shared__ Compute sums[kWarp];
  const RowTeam<Compute, kThreads> team{keys, sums};
  if (row_norm::overflowed(options)) return;
  const auto s = row_norm::scalars<Compute>(options);
  const int cols = static_cast<int>(options.cols);
  const int thread = threadIdx.x % kThreads;
  const int64_t workers = static_cast<int64_t>(gridDim.x) * (blockDim.x / kThreads);
  const int64_t rows = rows_in(table);

  int tensor = 0;
  for (int64_t r =
           static_cast<int64_t>(blockIdx.x) * (blockDim.x / kThreads) + threadIdx.x / kThreads;
       r < rows; r += workers) {
    tensor = tensor_of_row(table, r, tensor);
    const RowNormTensor& own = table.tensors[tensor];
    const Row<Param, Momentum, Compute> row(
        own, options, row_norm::row_place(own, row_in_tensor(table, tensor, r)));
    const auto column = [&](int pack) {
      return static_cast<int>(pack_column(pack, thread, kThreads, kWidth));
    };

    Compute x[kPacks][kWidth];
    int32_t key = 0;
    bool has_gradient = false;
#pragma unroll
    for (int batch = 0; batch < kPacks; batch += kBatch) {
      Pack<Param, kWidth> g[kBatch];
      Pack<Momentum, kWidth> m[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int c = column(batch + b);
        if (c < cols) {
          g[b] = load_pack<Param, kWidth>(row.grad_at(c));
          m[b] = load_pack<Momentum, kWidth>(row.momentum_at(c));
          // Brings the parameter towards the chip while the row is still being summed.
          if (kThreads > kWarp) prefetch(row.param_at(c));
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int c = column(batch + b);
        if (c < cols) {
          take_gradient(s, options.nesterov, g[b], &m[b], x[batch + b], &has_gradient);
          store_pack(m[b], row.momentum_at(c));
        } else {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) x[batch + b][i] = 0;
        }
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          key = ::max(key, row_norm::magnitude_key(x[batch + b][i]));
        }
      }
    }
    key = team.max(key, &has_gradient);

    Compute scale;
    row_norm::prescale(key, &scale);
    Compute squares = 0;
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const Compute y = x[pack][i] * scale;
        squares += y * y;
      }
    }
    squares = team.sum(squares);
    // The same for all threads of the row, so that no barrier is missed.
    if (options.gradient_support && !has_gradient) continue;

    const Compute length = update_length(row.step_size(), squares);
#pragma unroll
    for (int batch = 0; batch < kPacks; batch += kBatch) {
      Pack<Param, kWidth> p[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int c = column(batch + b);
        if (c < cols) p[b] = load_pack<Param, kWidth>(row.param_at(c));
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int c = column(batch + b);
        if (c < cols) {
          update(row, options, c, &p[b], length, x[batch + b], scale);
          store_pack(p[b], row.param_at(c));
        }
      }
    }
  }
}

// ---- Longer rows, read twice: for the norm, then for the step

constexpr int kLongRowThreads = 512;

template <typename Param, typename Momentum, int kWidth>
__global__ void __launch_bounds__(kLongRowThreads, 1)
    row_norm_in_two_passes(const __grid_constant__ RowTable table,
                           const __grid_constant__ RowNormOptions options) {
  using Compute = typename ComputeType<Param>::type;
  constexpr int kBatch = kWidth < 8 ? 2 : 1;

  __shared__ int32_t keys[kWarp];
  __shared__ Compute sums[kWarp];
  const RowTeam<Compute, kLongRowThreads> team{keys, sums};
  if (row_norm::overflowed(options)) return;
  const auto s = row_norm::scalars<Compute>(options);
  const int64_t cols = options.cols;
  const int64_t rows = rows_in(table);

  int tensor = 0;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    tensor = tensor_of_row(table, r, tensor);
    const RowNormTensor& own = table.tensors[tensor];
    const Row<Param, Momentum, Compute> row(
        own, options, row_norm::row_place(own, row_in_tensor(table, tensor, r)));
    const auto column = [&](int64_t pack) {
      return pack_column(pack, threadIdx.x, kLongRowThreads, kWidth);
    };

    // Each thread sums under the scale of what it has seen, and rescales, exactly, as that grows.
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
      Pack<Param, kWidth> g[kBatch];
      Pack<Momentum, kWidth> m[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int64_t c = column(batch + b);
        if (c < cols) {
          g[b] = load_pack<Param, kWidth>(row.grad_at(c));
          m[b] = load_pack<Momentum, kWidth>(row.momentum_at(c));
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (column(batch + b) >= cols) continue;
        Compute x[kWidth];
        take_gradient(s, options.nesterov, g[b], &m[b], x, &has_gradient);
        int32_t pack_key = 0;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) pack_key = ::max(pack_key, row_norm::magnitude_key(x[i]));
        if (pack_key > key) rescale(pack_key);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const Compute y = x[i] * scale;
          squares += y * y;
        }
      }
    }
    rescale(team.max(key, &has_gradient));
    squares = team.sum(squares);
    const bool moves = has_gradient || !options.gradient_support;
    const Compute length = update_length(row.step_size(), squares);

    for (int64_t batch = 0; column(batch) < cols; batch += kBatch) {
      Pack<Param, kWidth> p[kBatch];
      Pack<Param, kWidth> g[kBatch];
      Pack<Momentum, kWidth> m[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int64_t c = column(batch + b);
        if (c < cols) {
          g[b] = load_pack<Param, kWidth>(row.grad_at(c));
          m[b] = load_pack<Momentum, kWidth>(row.momentum_at(c));
          if (moves) p[b] = load_pack<Param, kWidth>(row.param_at(c));
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int64_t c = column(batch + b);
        if (c >= cols) continue;
        Compute x[kWidth];
        take_gradient(s, options.nesterov, g[b], &m[b], x, &has_gradient);
        store_pack(m[b], row.momentum_at(c));
        if (moves) {
          update(row, options, c, &p[b], length, x, scale);
          store_pack(p[b], row.param_at(c));
        }
      }
    }
  }
}

// ---- Launch

template <typename Kernel>
cudaError_t launch_on_rows(Kernel kernel, int threads, int rows_per_block, const RowTable& table,
                           const RowNormOptions& options, cudaStream_t stream) {
  const int64_t needed = (rows_in(table) + rows_per_block - 1) / rows_per_block;
  return launch_on_all(needed, threads, stream, kernel, table, options);
}

template <typename Param, typename Momentum, int kThreads, int kWidth, int kPacks>
cudaError_t launch_in_registers(const RowTable& table, const RowNormOptions& options,
                                cudaStream_t stream) {
  constexpr int kBlock = block_threads(kThreads);
  return launch_on_rows(row_norm_in_registers<Param, Momentum, kThreads, kWidth, kPacks>, kBlock,
                        kBlock / kThreads, table, options, stream);
}

template <typename Param, typename Momentum>
cudaError_t launch_rows(const RowTable& table, const RowNormOptions& options, bool vectors,
                        cudaStream_t stream) {
  constexpr int kValues = kBytesInRegisters / sizeof(typename ComputeType<Param>::type);
  constexpr int kWidth = pack_width(sizeof(Param), sizeof(Momentum));
  constexpr int kPacks = kValues / kWidth;
  const int64_t cols = options.cols;
  if (!vectors) {
    if (cols <= kWarp * kValues) {
      return launch_in_registers<Param, Momentum, kWarp, 1, kValues>(table, options, stream);
    }
    return launch_on_rows(row_norm_in_two_passes<Param, Momentum, 1>, kLongRowThreads, 1, table,
                          options, stream);
  }
  // Short rows take few registers, so that more warps keep the memory busy.
  if (cols <= kWarp * kValues / 4) {
    return launch_in_registers<Param, Momentum, kWarp, kWidth, kPacks / 4>(table, options, stream);
  }
  if (cols <= kWarp * kValues) {
    return launch_in_registers<Param, Momentum, kWarp, kWidth, kPacks>(table, options, stream);
  }
  if (cols <= 128 * kValues) {
    return launch_in_registers<Param, Momentum, 128, kWidth, kPacks>(table, options, stream);
  }
  if (cols <= 256 * kValues) {
    return launch_in_registers<Param, Momentum, 256, kWidth, kPacks>(table, options, stream);
  }
  if (cols <= 512 * kValues) {
    return launch_in_registers<Param, Momentum, 512, kWidth, kPacks>(table, options, stream);
  }
  if (cols <= 512 * 2 * kValues) {
    return launch_in_registers<Param, Momentum, 512, kWidth, 2 * kPacks>(table, options, stream);
  }
  return launch_on_rows(row_norm_in_two_passes<Param, Momentum, kWidth>, kLongRowThreads, 1, table,
                        options, stream);
}

template <typename Param, typename Momentum>
cudaError_t step(const RowNormTensor* tensors, int64_t count, const RowNormOptions& options,
                 cudaStream_t stream) {
  RowTable table;
  for (const bool vectors : {true, false}) {
    for (int64_t begin = 0; begin < count;) {
      begin = fill_table(tensors, count, begin, vectors, options, sizeof(Param), sizeof(Momentum),
                         &table);
      if (table.count == 0) continue;
      const cudaError_t error = launch_rows<Param, Momentum>(table, options, vectors, stream);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t row_norm_step(const RowNormTensor* tensors, int64_t count,
                          const RowNormOptions& options, cudaStream_t stream) {
  if (!row_norm_supports(options)) return cudaErrorInvalidValue;
  if (options.cols == 0) return cudaSuccess;
  const bool low = options.momentum_dtype == DType::bfloat16;
  switch (options.dtype) {
    case DType::float64: return step<double, double>(tensors, count, options, stream);
    case DType::float32:
      return low ? step<float, __nv_bfloat16>(tensors, count, options, stream)
                 : step<float, float>(tensors, count, options, stream);
    case DType::bfloat16:
      return low ? step<__nv_bfloat16, __nv_bfloat16>(tensors, count, options, stream)
                 : step<__nv_bfloat16, float>(tensors, count, options, stream);
    case DType::float16:
      return low ? step<__half, __nv_bfloat16>(tensors, count, options, stream)
                 : step<__half, float>(tensors, count, options, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace erlangen::kernels::cuda
