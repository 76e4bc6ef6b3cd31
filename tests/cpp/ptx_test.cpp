// The host's equivalents of the instructions in kernels/cuda/ptx.cuh, by the PTX ISA's layouts.

#include "kernels/cuda/ptx.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda_on_host.h"
#include "cuda_test_helpers.h"
#include "kernels/cuda/launch.cuh"

namespace {

using cuda_on_host::take_failure;
using namespace erlangen::kernels::cuda;
using namespace erlangen::testing;

class Ptx : public testing::Test {
 protected:
  void SetUp() override { cuda_on_host::device = {}; }
};

// ---- Tensor cores

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

TEST_F(Ptx, MultipliesFragments) {
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

TEST_F(Ptx, LoadsMatrices) {
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

TEST_F(Ptx, MultipliesInStages) {
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

TEST_F(Ptx, CopiesArriveAtTheWait) {
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

}  // namespace
