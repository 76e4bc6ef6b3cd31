// Access to the tiles of the kernels around the polar iteration, and the choice of a kernel by
// alignment and types. For .cu files only.

#pragma once

#include <cstdint>
#include <type_traits>

#include "polar_update_tiles.h"
#include "storage.cuh"

namespace erlangen::kernels::cuda {

template <typename T>
using Four = Pack<T, kPolarPack>;

// A tile of a tensor's matrix, in all of its buffers.
struct Place {
  const PolarUpdateOptions& options;
  PolarTile tile;
  int64_t matrix;  // of the tensor
  int64_t run;

  // Of row r and column c of the matrix, from the buffer's first element.
  __device__ __forceinline__ int64_t at(const RowStrides& strides, int64_t r, int64_t c) const {
    return matrix * strides.outer + r * strides.row + (c < run ? c : c - run + strides.segment);
  }
};

template <typename T>
__device__ __forceinline__ bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(Four<T>) == 0;
}

// Of what lies beyond the last column, zeros.
template <typename T>
__device__ __forceinline__ Four<T> load_four(const T* data, const Place& place,
                                             const RowStrides& strides, int64_t r, int64_t c,
                                             bool whole) {
  if (whole) return load_pack<T, kPolarPack>(data + place.at(strides, r, c));
  Four<T> pack = {};
#pragma unroll
  for (int i = 0; i < kPolarPack; ++i) {
    if (c + i < place.options.cols) pack.values[i] = data[place.at(strides, r, c + i)];
  }
  return pack;
}
template <typename T>
__device__ __forceinline__ void store_four(const Four<T>& pack, T* data, const Place& place,
                                           const RowStrides& strides, int64_t r, int64_t c,
                                           bool whole) {
  if (whole) return store_pack(pack, data + place.at(strides, r, c));
#pragma unroll
  for (int i = 0; i < kPolarPack; ++i) {
    if (c + i < place.options.cols) data[place.at(strides, r, c + i)] = pack.values[i];
  }
}

// The same in x, whose rows are aligned and `cols` long.
template <typename X>
__device__ __forceinline__ void store_x_four(const Four<X>& pack, X* row, int64_t c, int64_t cols) {
  if (c + kPolarPack <= cols) return store_pack(pack, row + c);
#pragma unroll
  for (int i = 0; i < kPolarPack; ++i) {
    if (c + i < cols) row[c + i] = pack.values[i];
  }
}
template <typename X>
__device__ __forceinline__ Four<X> load_x_four(const X* row, int64_t c, int64_t cols) {
  if (c + kPolarPack <= cols) return load_pack<X, kPolarPack>(row + c);
  Four<X> pack = {};
#pragma unroll
  for (int i = 0; i < kPolarPack; ++i) {
    if (c + i < cols) pack.values[i] = row[c + i];
  }
  return pack;
}

__device__ __forceinline__ void store_x(double value, double* out) { *out = value; }
template <typename X, typename Compute>
__device__ __forceinline__ void store_x(Compute value, X* out) {
  store(static_cast<float>(value), out);
}

// A tile turned round: element (row, column) of the tensor's matrix at [column][row]. A row more
// than a multiple of the banks, so that neither side meets them all at once.
template <typename X>
struct TurnedTile {
  static constexpr int kPad = sizeof(X) < 4 ? 4 / sizeof(X) : 1;
  X values[kPolarTile][kPolarTile + kPad];
};

// ---- Launch

using Kernel = void (*)(PolarUpdateOptions, PolarScratch, int64_t);

template <typename T>
struct Type {
  using type = T;
};

// visitor(Type<Param>)
template <typename Visitor>
cudaError_t with_param(const PolarUpdateOptions& options, Visitor&& visitor) {
  switch (options.dtype) {
    case DType::float64: return visitor(Type<double>());
    case DType::float32: return visitor(Type<float>());
    case DType::bfloat16: return visitor(Type<__nv_bfloat16>());
    case DType::float16: return visitor(Type<__half>());
  }
  return cudaErrorInvalidValue;
}

// visitor(Type<X>), for the type that everything else is computed in.
template <typename Compute, typename Visitor>
cudaError_t with_x(const PolarUpdateOptions& options, Visitor&& visitor) {
  if constexpr (std::is_same<Compute, double>::value) {
    if (options.product_dtype == DType::float64) return visitor(Type<double>());
  }
  switch (options.product_dtype) {
    case DType::float32: return visitor(Type<float>());
    case DType::bfloat16: return visitor(Type<__nv_bfloat16>());
    case DType::float16: return visitor(Type<__half>());
    default: return cudaErrorInvalidValue;
  }
}

inline bool fits(int64_t count, const PolarUpdateOptions& options) {
  return count >= 0 && polar_update_supports(options) && x_is_aligned(options);
}

inline bool is_empty(int64_t count, const PolarUpdateOptions& options) {
  return count * options.matrices * options.rows * options.cols == 0;
}

}  // namespace erlangen::kernels::cuda
