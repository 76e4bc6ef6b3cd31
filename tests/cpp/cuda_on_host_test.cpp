// That cuda_on_host runs CUDA's constructs as CUDA defines them, and catches wrong kernels.

#include "cuda_on_host.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "row_norm_oracle.h"

namespace {

using cuda_on_host::Order;
using cuda_on_host::take_failure;
using erlangen::kernels::DType;
using namespace erlangen::kernels::cuda;

constexpr unsigned kAll = 0xffffffffu;

class CudaOnHost : public testing::Test {
 protected:
  void SetUp() override { cuda_on_host::device = {}; }
};

// Runs `launch_it` in several orders; the results that came out.
template <typename Result, typename Launch>
std::set<Result> in_all_orders(Launch launch_it) {
  std::set<Result> results;
  for (int i = 0; i < 6; ++i) {
    cuda_on_host::device.order = i == 0   ? Order::forward
                                 : i == 1 ? Order::backward
                                          : Order::shuffled;
    cuda_on_host::device.seed = i;
    results.insert(launch_it());
  }
  return results;
}

void expect_failure(cudaError_t error, const std::vector<std::string>& words) {
  EXPECT_EQ(error, cudaErrorLaunchFailure);
  const std::string why = take_failure();
  for (const std::string& word : words) {
    EXPECT_NE(why.find(word), std::string::npos) << "no \"" << word << "\" in: " << why;
  }
}

// ---- Indices and exchanges

__global__ void write_indices(int* out) {
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1 + block * 1000 + thread;
}

TEST_F(CudaOnHost, EveryThreadOfEveryBlockOnce) {
  std::vector<int> out(24 * 30);
  ASSERT_EQ(launch(dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, write_indices, out.data()),
            cudaSuccess);
  for (int i = 0; i < 24 * 30; ++i) EXPECT_EQ(out[i], 1 + i / 30 * 1000 + i % 30);
  EXPECT_EQ(launch(1, 1025, 0, nullptr, write_indices, out.data()), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(0, 32, 0, nullptr, write_indices, out.data()), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, 32, 1 << 20, nullptr, write_indices, out.data()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

struct Exchanged {
  int xor5, down3, up3, from7, down3of8, up3of8, largest, smallest, sum, any, all, ballot, half;
};

__global__ void exchange(Exchanged* out) {
  const int lane = threadIdx.x % 32;
  const int x = static_cast<int>(threadIdx.x) * 3;
  Exchanged& e = out[threadIdx.x];
  e.xor5 = __shfl_xor_sync(kAll, x, 5);
  e.down3 = __shfl_down_sync(kAll, x, 3);
  e.up3 = __shfl_up_sync(kAll, x, 3);
  e.from7 = __shfl_sync(kAll, x, 7);
  e.down3of8 = __shfl_down_sync(kAll, x, 3, 8);
  e.up3of8 = __shfl_up_sync(kAll, x, 3, 8);
  e.largest = __reduce_max_sync(kAll, x);
  e.smallest = __reduce_min_sync(kAll, x);
  e.sum = __reduce_add_sync(kAll, x);
  e.any = __any_sync(kAll, lane == 9);
  e.all = __all_sync(kAll, lane != 9);
  e.ballot = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  __syncwarp();
  e.half = __reduce_add_sync(lane < 16 ? 0xffffu : 0xffff0000u, lane);
}

TEST_F(CudaOnHost, ExchangesWithinAWarp) {
  for (const Order order : {Order::forward, Order::backward, Order::shuffled}) {
    cuda_on_host::device.order = order;
    std::vector<Exchanged> out(64);
    ASSERT_EQ(launch(1, 64, 0, nullptr, exchange, out.data()), cudaSuccess) << take_failure();
    for (int t = 0; t < 64; ++t) {
      const int lane = t % 32;
      const int first = t - lane;
      EXPECT_EQ(out[t].xor5, 3 * (first + (lane ^ 5)));
      EXPECT_EQ(out[t].down3, 3 * (lane + 3 < 32 ? t + 3 : t));
      EXPECT_EQ(out[t].up3, 3 * (lane >= 3 ? t - 3 : t));
      EXPECT_EQ(out[t].from7, 3 * (first + 7));
      EXPECT_EQ(out[t].down3of8, 3 * (lane % 8 + 3 < 8 ? t + 3 : t));
      EXPECT_EQ(out[t].up3of8, 3 * (lane % 8 >= 3 ? t - 3 : t));
      EXPECT_EQ(out[t].largest, 3 * (first + 31));
      EXPECT_EQ(out[t].smallest, 3 * first);
      EXPECT_EQ(out[t].sum, 3 * (32 * first + 496));
      EXPECT_EQ(out[t].any, 1);
      EXPECT_EQ(out[t].all, 0);
      EXPECT_EQ(out[t].ballot, 0x49249249);
      EXPECT_EQ(out[t].half, lane < 16 ? 120 : 376);
    }
  }
}

__global__ void votes(int* out) {
  const int count = __syncthreads_count(threadIdx.x % 5 == 0);
  const int any = __syncthreads_or(threadIdx.x == 77);
  const int all = __syncthreads_and(threadIdx.x != 77);
  out[threadIdx.x] = count * 4 + any * 2 + all;
}

TEST_F(CudaOnHost, VotesOfABlock) {
  std::vector<int> out(100);
  ASSERT_EQ(launch(1, 100, 0, nullptr, votes, out.data()), cudaSuccess) << take_failure();
  for (const int x : out) EXPECT_EQ(x, 20 * 4 + 2);
}

// ---- Half precision

TEST_F(CudaOnHost, HalfPatternsAndRounding) {
  using erlangen::testing::decode_half;
  using erlangen::testing::encode_half;
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float b = __bfloat162float(__ushort_as_bfloat16(bits));
    const float h = __half2float(__ushort_as_half(bits));
    const double wants_b = decode_half(DType::bfloat16, bits);
    const double wants_h = decode_half(DType::float16, bits);
    if (std::isnan(wants_b)) {
      ASSERT_TRUE(std::isnan(b) && std::isnan(float(__float2bfloat16_rn(b))));
    } else {
      ASSERT_EQ(b, wants_b);
    }
    if (std::isnan(wants_h)) {
      ASSERT_TRUE(std::isnan(h) && std::isnan(float(__float2half_rn(h))));
    } else {
      ASSERT_EQ(h, wants_h);
    }
  }
  // Every upper half of a float, with lower halves next to the midpoints of either format.
  for (uint32_t high = 0; high < 65536; ++high) {
    for (const uint32_t low : {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x3000u, 0x7fffu,
                               0x8000u, 0x8001u, 0xffffu}) {
      const float x = __uint_as_float(high << 16 | low);
      if (std::isnan(x)) continue;
      ASSERT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(x)), encode_half(DType::bfloat16, x)) << x;
      ASSERT_EQ(__half_as_ushort(__float2half_rn(x)), encode_half(DType::float16, x)) << x;
    }
  }
}

// ---- Tensor cores

template <typename T>
std::vector<T> random_matrix(int count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(count);
  for (T& x : values) x = T(normal(generator));
  return values;
}

// The fragments by the rules of the PTX ISA, one element at a time: a0 ... a7, b0 ... b3, c0 ...
// c3.
template <typename T>
__global__ void multiply_fragments(const T* a, const T* b, float* c) {
  const int lane = threadIdx.x;
  const int group = lane >> 2;
  const int in_group = lane % 4;
  T a_elements[8];
  T b_elements[4];
  float d[4];
  for (int i = 0; i < 8; ++i) {
    const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
    const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    a_elements[i] = a[row * 16 + column];
  }
  for (int i = 0; i < 4; ++i) {
    const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    b_elements[i] = b[row * 8 + group];
  }
  const auto place = [&](int i) {
    return (i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1);
  };
  for (int i = 0; i < 4; ++i) d[i] = c[place(i)];
  uint32_t a_registers[4];
  uint32_t b_registers[2];
  std::memcpy(a_registers, a_elements, 16);
  std::memcpy(b_registers, b_elements, 8);
  mma_m16n8k16<T>(d, a_registers, b_registers);
  for (int i = 0; i < 4; ++i) c[place(i)] = d[i];
}

// |d| sums of 17 terms, each rounded to float.
void check_product(double exact, double magnitude, float d) {
  EXPECT_NEAR(d, exact, 17 * std::ldexp(magnitude, -24));
}

template <typename T>
void test_fragments() {
  const auto a = random_matrix<T>(16 * 16, 1);
  const auto b = random_matrix<T>(16 * 8, 2);
  const auto start = random_matrix<T>(16 * 8, 3);
  std::vector<float> c(start.begin(), start.end());
  ASSERT_EQ(launch(1, 32, 0, nullptr, multiply_fragments<T>, a.data(), b.data(), c.data()),
            cudaSuccess);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      double exact = float(start[i * 8 + j]);
      double magnitude = std::fabs(exact);
      for (int k = 0; k < 16; ++k) {
        const double product = double(float(a[i * 16 + k])) * float(b[k * 8 + j]);
        exact += product;
        magnitude += std::fabs(product);
      }
      check_product(exact, magnitude, c[i * 8 + j]);
    }
  }
}

TEST_F(CudaOnHost, MultipliesFragments) {
  test_fragments<__half>();
  test_fragments<__nv_bfloat16>();
}

// Each lane's registers hold what the PTX ISA says of matrices whose elements tell their place.
__global__ void load_fragments(uint16_t* out) {
  __shared__ __align__(16) uint16_t matrices[4][8][8];
  for (int i = threadIdx.x; i < 256; i += 32) {
    matrices[i / 64][i / 8 % 8][i % 8] = static_cast<uint16_t>(i);
  }
  __syncthreads();
  const void* row = matrices[threadIdx.x / 8][threadIdx.x % 8];
  uint32_t r[4];
  ldmatrix_x4(row, r);
  std::memcpy(out + 16 * threadIdx.x, r, 16);
  ldmatrix_x4_trans(row, r);
  std::memcpy(out + 16 * threadIdx.x + 8, r, 16);
}

TEST_F(CudaOnHost, LoadsMatrices) {
  std::vector<uint16_t> out(32 * 16);
  ASSERT_EQ(launch(1, 32, 0, nullptr, load_fragments, out.data()), cudaSuccess) << take_failure();
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        const int place = matrix * 64 + row * 8 + column;
        EXPECT_EQ(out[(row * 4 + column / 2) * 16 + 2 * matrix + column % 2], place);
        EXPECT_EQ(out[(column * 4 + row / 2) * 16 + 8 + 2 * matrix + row % 2], place);
      }
    }
  }
}

// C = A B with A 16 x 64 and B 64 x 16 (stored k x n, or n x k), as a kernel would do it: two
// stages of asynchronous copies, fragments by ldmatrix, 8 columns a product.
template <typename T, bool kNByK>
__global__ void multiply_in_stages(const T* a, const T* b, float* c) {
  auto* memory = static_cast<T*>(dynamic_shared());
  const int lane = threadIdx.x;
  const auto stage = [&](int s) { return memory + (s % 2) * 512; };
  const auto load = [&](int s) {
    const int row = lane / 2;
    const int half = lane % 2 * 8;
    cp_async_16(stage(s) + row * 16 + half, a + row * 64 + s * 16 + half);
    const T* from = kNByK ? b + row * 64 + s * 16 + half : b + (s * 16 + row) * 16 + half;
    cp_async_16(stage(s) + 256 + row * 16 + half, from);
  };
  float d[2][4] = {};
  load(0);
  cp_async_commit();
  for (int s = 0; s < 4; ++s) {
    if (s < 3) load(s + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    uint32_t fragment_a[4];
    uint32_t fragment_b[4];
    const int row = lane % 16;
    const int column = lane / 16 * 8;
    ldmatrix_x4(stage(s) + row * 16 + column, fragment_a);
    const T* tile_b = stage(s) + 256;
    if (kNByK) {
      ldmatrix_x4(tile_b + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8, fragment_b);
    } else {
      ldmatrix_x4_trans(tile_b + row * 16 + column, fragment_b);
    }
    for (int n = 0; n < 2; ++n) {
      const uint32_t pair[2] = {fragment_b[2 * n], fragment_b[2 * n + 1]};
      mma_m16n8k16<T>(d[n], fragment_a, pair);
    }
    __syncthreads();
  }
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 4; ++i) {
      c[(lane / 4 + i / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + i % 2] = d[n][i];
    }
  }
}

template <typename T, bool kNByK>
void test_stages() {
  const auto a = random_matrix<T>(16 * 64 + 8, 1);
  const auto b = random_matrix<T>(16 * 64 + 8, 2);
  const auto results = in_all_orders<std::vector<float>>([&] {
    std::vector<float> c(256, NAN);
    EXPECT_EQ(
        launch(1, 32, 2048, nullptr, multiply_in_stages<T, kNByK>, a.data(), b.data(), c.data()),
        cudaSuccess)
        << take_failure();
    return c;
  });
  ASSERT_EQ(results.size(), 1u);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      double exact = 0;
      double magnitude = 0;
      for (int k = 0; k < 64; ++k) {
        const T x = kNByK ? b[j * 64 + k] : b[k * 16 + j];
        const double product = double(float(a[i * 64 + k])) * float(x);
        exact += product;
        magnitude += std::fabs(product);
      }
      EXPECT_NEAR((*results.begin())[i * 16 + j], exact, 64 * std::ldexp(magnitude, -24));
    }
  }
}

TEST_F(CudaOnHost, MultipliesInStages) {
  test_stages<__half, false>();
  test_stages<__half, true>();
  test_stages<__nv_bfloat16, false>();
  test_stages<__nv_bfloat16, true>();
}

// ---- Asynchronous copies

template <bool kWaits, int kPending>
__global__ void copy_two_groups(const float* in, float* out, int bytes) {
  __shared__ __align__(16) float there[2][4];
  cp_async_16(there[0], in, bytes);
  cp_async_commit();
  cp_async_16(there[1], in + 4, bytes);
  cp_async_commit();
  if (kWaits) cp_async_wait<kPending>();
  for (int i = 0; i < 8; ++i) out[i] = there[i / 4][i % 4];
}

TEST_F(CudaOnHost, CopiesArriveAtTheWait) {
  alignas(16) const float in[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  float out[8];
  const auto arrived = [&](auto kernel, int bytes) {
    EXPECT_EQ(launch(1, 1, 0, nullptr, kernel, in, out, bytes), cudaSuccess) << take_failure();
    return std::vector<float>(out, out + 8);
  };
  EXPECT_EQ(arrived(copy_two_groups<true, 0>, 16), std::vector<float>(in, in + 8));
  EXPECT_EQ(arrived(copy_two_groups<true, 0>, 4), (std::vector<float>{1, 0, 0, 0, 5, 0, 0, 0}));
  EXPECT_EQ(arrived(copy_two_groups<true, 0>, 0), std::vector<float>(8, 0));
  const auto one = arrived(copy_two_groups<true, 1>, 16);
  const auto none = arrived(copy_two_groups<false, 0>, 16);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(std::isnan(one[i]), i >= 4);
    EXPECT_TRUE(std::isnan(none[i]));
  }
}

// ---- Wrong kernels are caught

// Adds up the block's numbers, `rounds` times in the same memory.
template <bool kFirstBarrier, bool kLastBarrier>
__global__ void add_up(const float* in, float* out, int rounds) {
  __shared__ float sums[4];
  for (int round = 0; round < rounds; ++round) {
    float x = in[round * blockDim.x + threadIdx.x];
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kAll, x, mask);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    if (kFirstBarrier) __syncthreads();
    out[round * blockDim.x + threadIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
    if (kLastBarrier) __syncthreads();
  }
}

// The results of all orders, to the bit; NaN, which is poison, among them or not.
template <typename Kernel>
size_t count_results(Kernel kernel, int rounds, bool* poisoned) {
  const std::vector<float> in = random_matrix<float>(128 * rounds, 1);
  *poisoned = false;
  return in_all_orders<std::vector<uint32_t>>([&] {
           std::vector<float> out(128 * rounds);
           EXPECT_EQ(launch(2, 128, 0, nullptr, kernel, in.data(), out.data(), rounds), cudaSuccess)
               << take_failure();
           std::vector<uint32_t> bits(out.size());
           std::memcpy(bits.data(), out.data(), 4 * out.size());
           for (const float x : out) *poisoned |= std::isnan(x);
           return bits;
         })
      .size();
}

TEST_F(CudaOnHost, MissingBarriersShow) {
  bool poisoned;
  EXPECT_EQ(count_results(add_up<true, true>, 2, &poisoned), 1u);
  EXPECT_FALSE(poisoned);
  // Before the numbers are read: whoever comes first reads poison.
  EXPECT_GT(count_results(add_up<false, true>, 1, &poisoned), 1u);
  EXPECT_TRUE(poisoned);
  // Before they are written again: the next round's numbers for some.
  EXPECT_EQ(count_results(add_up<true, false>, 1, &poisoned), 1u);
  EXPECT_GT(count_results(add_up<true, false>, 2, &poisoned), 1u);
  EXPECT_FALSE(poisoned);
}

enum class Wrong { exits, skips, other_place, lane_skips, foreign_lane, outside_mask };

__global__ void diverge(Wrong wrong) {
  const unsigned t = threadIdx.x;
  switch (wrong) {
    case Wrong::exits:
      if (t >= 32) return;
      __syncthreads();
      break;
    case Wrong::skips:
      if (t != 5) __syncthreads();
      __syncthreads();
      break;
    case Wrong::other_place:
      if (t < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Wrong::lane_skips:
      if (t % 32 != 7) __shfl_xor_sync(kAll, 1, 1);
      break;
    case Wrong::foreign_lane:
      if (t % 32 < 16) __shfl_xor_sync(0xffffu, 1, 16);
      break;
    case Wrong::outside_mask: __syncwarp(0xffffu); break;
  }
}

TEST_F(CudaOnHost, DivergenceFails) {
  for (const Order order : {Order::forward, Order::backward, Order::shuffled}) {
    cuda_on_host::device.order = order;
    const auto fails = [&](Wrong wrong, const std::vector<std::string>& words) {
      expect_failure(launch(1, 64, 0, nullptr, diverge, wrong), words);
    };
    fails(Wrong::exits,
          {"block (0, 0, 0)", "0 to 31 waits in __syncthreads", "32 to 63 has exited"});
    fails(Wrong::skips, {"threads diverge", "; 5 waits in __syncthreads"});
    fails(Wrong::other_place, {"threads diverge", "32 to 63 waits"});
    fails(Wrong::lane_skips, {"__shfl_xor_sync", "7 has exited"});
    fails(Wrong::foreign_lane, {"not in its mask"});
    fails(Wrong::outside_mask, {"__syncwarp", "not in its mask"});
  }
  // And the next launch is as if nothing had been.
  std::vector<int> out(100);
  EXPECT_EQ(launch(1, 100, 0, nullptr, votes, out.data()), cudaSuccess);
  EXPECT_EQ(take_failure(), "");
}

__global__ void touch(int where, int* out) {
  auto* memory = static_cast<unsigned char*>(dynamic_shared());
  uint32_t r[4] = {};
  switch (where) {
    case 0: memory[64] = 1; break;
    case 1: cp_async_16(memory + 8, out); break;
    case 2: cp_async_16(out, out); break;
    case 3: ldmatrix_x4(memory + 52, r); break;
    default: memory[63] = 1; break;
  }
  out[0] = memory[where == 5 ? 0 : 63];
}

TEST_F(CudaOnHost, StrayAddressesFail) {
  alignas(16) int out[4];
  const auto touching = [&](int where) { return launch(1, 32, 64, nullptr, touch, where, out); };
  expect_failure(touching(0), {"past the 64 bytes"});
  expect_failure(touching(1), {"cp.async", "misaligned"});
  expect_failure(touching(2), {"cp.async", "not in shared"});
  expect_failure(touching(3), {"ldmatrix", "not in shared"});
  EXPECT_EQ(touching(4), cudaSuccess);
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(touching(5), cudaSuccess);
  EXPECT_EQ(out[0], 0xff);
}

// Shared variables of templates are poisoned too, before every block.
template <typename T>
__global__ void reads_first(T* out) {
  __shared__ T values[33];
  out[33 * blockIdx.x + threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = T(1);
}

template <typename T>
void test_poison() {
  std::vector<T> out(2 * 33, T(0));
  ASSERT_EQ(launch(2, 33, 0, nullptr, reads_first<T>, out.data()), cudaSuccess);
  for (const T x : out) EXPECT_TRUE(std::isnan(x));
}

TEST_F(CudaOnHost, SharedMemoryBeginsAsPoison) {
  test_poison<float>();
  test_poison<double>();
  test_poison<__half>();
  test_poison<__nv_bfloat16>();
}

}  // namespace
