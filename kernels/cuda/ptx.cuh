// The instructions that CUDA C++ has no name for, one small function each, and the only place with
// inline PTX. For .cu files only; sm_80 and newer.
//
// Each has a plain C++ equivalent, with which tests run the kernels on the host. The layouts are
// those of the PTX ISA, whose section is named with each.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace erlangen::kernels::cuda {

// Asks for a line of global memory in L2; takes no register. "Data Movement: prefetch".
__device__ __forceinline__ void prefetch(const void* data) {
#ifdef ERLANGEN_CUDA_ON_HOST
  (void)data;
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(data));
#endif
}

// ---- Asynchronous copies from global to shared memory. "Data Movement: cp.async" (non-bulk).

// Copies the first `bytes` (0 to 16) from `global` and fills up to 16 with zeros, past the L1
// cache. Both addresses are multiples of 16, also where `bytes` is 0 and nothing is read.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int bytes = 16) {
#ifdef ERLANGEN_CUDA_ON_HOST
  cuda_on_host::copy_later(shared, global, bytes, 16);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes)
               : "memory");
#endif
}

// Makes one group, possibly empty, of this thread's copies since the last one.
__device__ __forceinline__ void cp_async_commit() {
#ifdef ERLANGEN_CUDA_ON_HOST
  cuda_on_host::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the latest kPending groups of this thread are still under way. Other threads
// see the copies after a barrier.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef ERLANGEN_CUDA_ON_HOST
  cuda_on_host::wait_for_copies(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// ---- Matrices of 16-bit elements from shared memory. "Warp-level matrix load: ldmatrix".
//
// Loads four 8x8 matrices 0, 1, 2, 3 into r[0], r[1], r[2], r[3] of all 32 lanes. Lane 8 j + i
// gives the address of row i of matrix j: 8 elements, 16 bytes, aligned to 16. Of each matrix lane
// l gets row l / 4, columns 2 (l % 4) in the lower and 2 (l % 4) + 1 in the upper half of the
// register; of the transposed form rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.

#ifdef ERLANGEN_CUDA_ON_HOST
namespace on_host {

struct LoadMatrix {
  const unsigned char* row;
  uint32_t* registers;
};

template <bool kTranspose>
void load_matrices(void* const* lanes, int) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int along = 2 * (lane % 4) + i;
        const int row = kTranspose ? along : lane / 4;
        const int column = kTranspose ? lane / 4 : along;
        const auto* source = static_cast<const LoadMatrix*>(lanes[8 * matrix + row]);
        std::memcpy(&pair[i], source->row + 2 * column, 2);
      }
      std::memcpy(&static_cast<LoadMatrix*>(lanes[lane])->registers[matrix], pair, 4);
    }
  }
}

template <bool kTranspose>
void ldmatrix_x4(const void* row, uint32_t (&r)[4]) {
  cuda_on_host::check_shared("ldmatrix", row, 16);
  LoadMatrix mine{static_cast<const unsigned char*>(row), r};
  cuda_on_host::warp_rendezvous(kTranspose ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, &mine,
                                load_matrices<kTranspose>);
}

}  // namespace on_host
#endif

__device__ __forceinline__ void ldmatrix_x4(const void* row, uint32_t (&r)[4]) {
#ifdef ERLANGEN_CUDA_ON_HOST
  on_host::ldmatrix_x4<false>(row, r);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(const void* row, uint32_t (&r)[4]) {
#ifdef ERLANGEN_CUDA_ON_HOST
  on_host::ldmatrix_x4<true>(row, r);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// ---- D = A B + D on tensor cores. "Matrix Fragments for mma.m16n8k16 with floating point type".
//
// A is 16 x 16, B is 16 x 8, D is 16 x 8; a register of A or B holds two elements, the first in its
// lower half. With q = lane / 4 and t = lane % 4 a lane has
//
//   a[0]: A[q][2t, 2t+1]    a[1]: A[q+8][2t, 2t+1]    a[2]: A[q][2t+8, 2t+9]    a[3]: A[q+8][2t+8,
//   2t+9] b[0]: B[2t, 2t+1][q]    b[1]: B[2t+8, 2t+9][q] d[0], d[1]: D[q][2t], D[q][2t+1]    d[2],
//   d[3]: D[q+8][2t], D[q+8][2t+1]
//
// so that ldmatrix_x4 on A's four 8x8 quarters (upper left, lower left, upper right, lower right)
// gives a, and on B stored as n x k, untransposed, the b of two neighbouring tiles.

#ifdef ERLANGEN_CUDA_ON_HOST
namespace on_host {

template <typename T>
struct MatrixMultiply {
  const uint32_t* a;
  const uint32_t* b;
  float* d;
};

template <typename T>
float element(uint32_t pair, int i) {
  T halves[2];
  std::memcpy(halves, &pair, 4);
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(halves[i]);
  } else {
    return __bfloat162float(halves[i]);
  }
}

// Products are exact and each sum is rounded to float, in ascending k. Hardware sums in another
// order and truncates, within the same error bound.
template <typename T>
void multiply_matrices(void* const* lanes, int) {
  float a[16][16];
  float b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const MatrixMultiply<T>*>(lanes[lane]);
    const int q = lane / 4;
    const int t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      for (int r = 0; r < 4; ++r) {
        a[q + 8 * (r % 2)][2 * t + i + 8 * (r / 2)] = element<T>(mine.a[r], i);
      }
      for (int r = 0; r < 2; ++r) b[2 * t + i + 8 * r][q] = element<T>(mine.b[r], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<const MatrixMultiply<T>*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2);
      const int column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < 16; ++k) {
        d[i] = static_cast<float>(d[i] + static_cast<double>(a[row][k]) * b[k][column]);
      }
    }
  }
}

}  // namespace on_host
#endif

template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  constexpr bool kHalf = std::is_same<T, __half>::value;
  static_assert(kHalf || std::is_same<T, __nv_bfloat16>::value, "16-bit operands");
#ifdef ERLANGEN_CUDA_ON_HOST
  on_host::MatrixMultiply<T> mine{a, b, d};
  cuda_on_host::warp_rendezvous(kHalf ? "mma.f16" : "mma.bf16", 0xffffffffu, &mine,
                                on_host::multiply_matrices<T>);
#else
  if constexpr (kHalf) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

}  // namespace erlangen::kernels::cuda
