// Barriers, exchanges within a warp, and functions that CUDA C++ has and C++ has not.

#pragma once

#include <math.h>  // with sqrt and others in the global namespace, for float too

#include <bit>
#include <cstring>

namespace cuda_on_host {

constexpr int kWarp = 32;

template <typename T>
struct Value {
  T mine;
  T result;
};

// Folds the values of all who take part and gives each the result.
template <typename T, typename Fold>
void fold(void* const* data, int count) {
  T result{};
  bool first = true;
  for (int i = 0; i < count; ++i) {
    if (data[i] == nullptr) continue;
    const T x = static_cast<const Value<T>*>(data[i])->mine;
    result = first ? x : Fold()(result, x);
    first = false;
  }
  for (int i = 0; i < count; ++i) {
    if (data[i] != nullptr) static_cast<Value<T>*>(data[i])->result = result;
  }
}

template <typename Fold, typename T>
T warp_fold(const char* name, unsigned mask, T x, Site site) {
  Value<T> value{x, x};
  warp_rendezvous(name, mask, &value, fold<T, Fold>, site);
  return value.result;
}
template <typename Fold>
int block_fold(const char* name, int x, Site site) {
  Value<int> value{x, x};
  block_rendezvous(name, &value, fold<int, Fold>, site);
  return value.result;
}

struct Larger {
  template <typename T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Smaller {
  template <typename T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

template <typename T>
struct Shuffle {
  T mine;
  int from;
  T result;
};

template <typename T>
void shuffle_lanes(void* const* data, int count) {
  for (int i = 0; i < count; ++i) {
    auto* to = static_cast<Shuffle<T>*>(data[i]);
    if (to == nullptr) continue;
    const auto* from = static_cast<const Shuffle<T>*>(data[to->from]);
    if (from == nullptr) {
      fail("a shuffle reads lane " + std::to_string(to->from) + ", which is not in its mask");
      return;
    }
    to->result = from->mine;
  }
}

template <typename T>
T shuffle(const char* name, unsigned mask, T x, int from, Site site) {
  Shuffle<T> value{x, from, x};
  warp_rendezvous(name, mask, &value, shuffle_lanes<T>, site);
  return value.result;
}

inline int thread_of_block() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}
inline int lane() { return thread_of_block() % kWarp; }

template <typename To, typename From>
To same_bits(From x) {
  return std::bit_cast<To>(x);
}

}  // namespace cuda_on_host

using CudaSite = cuda_on_host::Site;

// ---- Barriers

inline void __syncthreads(CudaSite site = CudaSite::current()) {
  cuda_on_host::block_rendezvous("__syncthreads", nullptr, nullptr, site);
}
inline int __syncthreads_or(int x, CudaSite site = CudaSite::current()) {
  return cuda_on_host::block_fold<std::bit_or<int>>("__syncthreads_or", x != 0, site);
}
inline int __syncthreads_and(int x, CudaSite site = CudaSite::current()) {
  return cuda_on_host::block_fold<std::bit_and<int>>("__syncthreads_and", x != 0, site);
}
inline int __syncthreads_count(int x, CudaSite site = CudaSite::current()) {
  return cuda_on_host::block_fold<std::plus<int>>("__syncthreads_count", x != 0, site);
}
inline void __syncwarp(unsigned mask = ~0u, CudaSite site = CudaSite::current()) {
  cuda_on_host::warp_rendezvous("__syncwarp", mask, nullptr, nullptr, site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Exchanges within a warp. `width` is a power of two; out of its range a lane keeps its own.

template <typename T>
T __shfl_sync(unsigned mask, T x, int from, int width = 32, CudaSite site = CudaSite::current()) {
  const int first = cuda_on_host::lane() & ~(width - 1);
  return cuda_on_host::shuffle("__shfl_sync", mask, x, first | (from & (width - 1)), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32,
                  CudaSite site = CudaSite::current()) {
  const int lane = cuda_on_host::lane();
  const int from = lane ^ lanes;
  return cuda_on_host::shuffle("__shfl_xor_sync", mask, x,
                               from <= (lane | (width - 1)) ? from : lane, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32,
                   CudaSite site = CudaSite::current()) {
  const int lane = cuda_on_host::lane();
  const int from = lane + static_cast<int>(by);
  return cuda_on_host::shuffle("__shfl_down_sync", mask, x,
                               from <= (lane | (width - 1)) ? from : lane, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32,
                 CudaSite site = CudaSite::current()) {
  const int lane = cuda_on_host::lane();
  const int from = lane - static_cast<int>(by);
  return cuda_on_host::shuffle("__shfl_up_sync", mask, x,
                               from >= (lane & ~(width - 1)) ? from : lane, site);
}

// int and unsigned, as on the device.
template <typename T>
T __reduce_max_sync(unsigned mask, T x, CudaSite site = CudaSite::current()) {
  return cuda_on_host::warp_fold<cuda_on_host::Larger>("__reduce_max_sync", mask, x, site);
}
template <typename T>
T __reduce_min_sync(unsigned mask, T x, CudaSite site = CudaSite::current()) {
  return cuda_on_host::warp_fold<cuda_on_host::Smaller>("__reduce_min_sync", mask, x, site);
}
template <typename T>
T __reduce_add_sync(unsigned mask, T x, CudaSite site = CudaSite::current()) {
  return cuda_on_host::warp_fold<std::plus<T>>("__reduce_add_sync", mask, x, site);
}
inline int __any_sync(unsigned mask, int x, CudaSite site = CudaSite::current()) {
  return cuda_on_host::warp_fold<std::bit_or<int>>("__any_sync", mask, int{x != 0}, site);
}
inline int __all_sync(unsigned mask, int x, CudaSite site = CudaSite::current()) {
  return cuda_on_host::warp_fold<std::bit_and<int>>("__all_sync", mask, int{x != 0}, site);
}
inline unsigned __ballot_sync(unsigned mask, int x, CudaSite site = CudaSite::current()) {
  const unsigned bit = x != 0 ? 1u << cuda_on_host::lane() : 0u;
  return cuda_on_host::warp_fold<std::bit_or<unsigned>>("__ballot_sync", mask, bit, site);
}

// ---- Arithmetic

inline int max(int a, int b) { return a < b ? b : a; }
inline int min(int a, int b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline long max(long a, long b) { return a < b ? b : a; }
inline long min(long a, long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }

inline float rsqrtf(float x) { return static_cast<float>(1 / ::sqrt(static_cast<double>(x))); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline double rsqrt(double x) { return 1 / ::sqrt(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return ::sqrtf(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

inline int __float_as_int(float x) { return cuda_on_host::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_host::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_host::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_host::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_host::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_host::same_bits<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

template <typename T>
T __ldg(const T* data) {
  return *data;
}
template <typename T>
T atomicAdd(T* data, T x) {
  static_assert(std::is_integral_v<T>, "sums of floats in any order are not deterministic");
  const T before = *data;
  *data = before + x;
  return before;
}
