// Which way symmetric products and polar iterations take on every device, asked on the host.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "kernels/cuda/symmetric_product_sm90_tiles.h"
#include "kernels/cuda/symmetric_product_tiles.h"
#include "polar.h"
#include "polar_iteration.h"
#include "symmetric_product.h"

namespace {

using namespace erlangen;
using enum SymmetricRoute;
namespace sm90 = kernels::cuda::sm90;

constexpr int kArchitectures[] = {80, 90, 100, 120};

SymmetricRoute route(int capability, at::ScalarType dtype, int64_t n, int64_t k,
                     bool aligned = true) {
  return symmetric_route(capability, {dtype, n, k, aligned, aligned});
}
SymmetricRoute route(int capability, at::ScalarType dtype, int64_t n) {
  return route(capability, dtype, n, n);
}

// A product's route, with how our kernels cut it up; rows aligned and all kernels there.
std::string choice(int capability, at::ScalarType dtype, int64_t n, int64_t k, bool gram) {
  const auto cut_into = [](const kernels::cuda::Cut& cut) {
    return cut.parts > 1 ? " x " + std::to_string(cut.parts) : "";
  };
  switch (route(capability, dtype, n, k)) {
    case plain: return "plain";
    case strips: return "strips";
    case mma_sync: return "mma_sync" + cut_into(kernels::cuda::mma_plan(n, k).cut);
    case wgmma: break;
  }
  const sm90::Plan plan = sm90::plan_for(n, k, gram);
  return (plan.width == 1 ? "narrow" : "wide") + cut_into(plan.cut);
}

// Of an iteration in its products' default type: form, types, and the routes of XXᵀ, of R² and of
// QZ, or that one launch takes it all.
std::string choice(int capability, Side side, int64_t k, int64_t l) {
  const c10::Device device(c10::kCUDA, 0);
  const PolarForm form = polar_form(at::kFloat, device, side, k, l, {});
  std::string result = form.gram ? "gram " : "standard ";
  if (polar_in_one_launch(capability, form.dtype, k, l, iteration_steps({}).size(), true)) {
    return result + c10::toString(form.dtype) + " in one launch";
  }
  const auto type = form.gram ? gram_dtype(form.dtype, device, k, l) : form.dtype;
  result += std::string(c10::toString(type)) + ": " + choice(capability, type, k, l, true) + ", " +
            choice(capability, type, k, k, true);
  return form.gram ? result + ", " + choice(capability, type, k, k, false) : result;
}

struct Choices {
  int64_t n, k;
  std::string of[4];  // for kArchitectures
};

// Ampere and consumer Blackwell have nothing faster than mma.sync, whatever the size. On Hopper the
// tile is what counting waves of 132 SMs, or 66 pairs of tiles, finds fastest. So is the number of
// parts ("x 4") into which k is cut.
TEST(KernelChoice, SymmetricProducts) {
  const Choices table[] = {
      // Hopper: from two blocks of 128 on a cluster is full. Blackwell: one launch, not two.
      {256, 256, {"mma_sync", "narrow", "mma_sync", "mma_sync"}},
      {512, 512, {"mma_sync", "narrow", "mma_sync", "mma_sync"}},
      {768, 768, {"mma_sync", "narrow", "mma_sync", "mma_sync"}},
      // From here on tcgen05, that is cuBLAS, fills data-centre Blackwell; in strips from 2560 on,
      // below which one full product takes fewer waves.
      {1024, 1024, {"mma_sync", "narrow", "plain", "mma_sync"}},
      // 39 pairs, one wave, where a full product takes two.
      {1536, 1536, {"mma_sync", "narrow", "plain", "mma_sync"}},
      // 68 narrow pairs are just over a wave, 36 wide ones are in it.
      {2048, 2048, {"mma_sync", "wide", "plain", "mma_sync"}},
      // 150 narrow pairs in three waves; 78 wide ones in two of twice the length.
      {3072, 3072, {"mma_sync", "narrow", "strips", "mma_sync"}},
      // 264 narrow pairs: four full waves; 136 wide ones are just over two.
      {4096, 4096, {"mma_sync", "narrow", "strips", "mma_sync"}},
      // 528 wide pairs: eight full waves, and a wide tile multiplies faster.
      {8192, 8192, {"mma_sync", "wide", "strips", "mma_sync"}},
      // 21 tiles, or 11 pairs, alone would leave most SMs idle: 84 parts of them for 108 SMs. On
      // Hopper more than two parts would be so short that a batch lost by them.
      {768, 8192, {"mma_sync x 4", "narrow x 2", "mma_sync x 4", "mma_sync x 4"}},
      // 36 tiles in 3 parts fill 108 SMs; 18 pairs in 11 parts are three full waves.
      {1024, 151936, {"mma_sync x 3", "narrow x 11", "strips", "mma_sync x 3"}},
  };
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    for (const auto& [n, k, of] : table) {
      for (int i = 0; i < 4; ++i) {
        EXPECT_EQ(choice(kArchitectures[i], dtype, n, k, true), of[i])
            << "sm_" << kArchitectures[i] << ", " << n << " x " << k;
      }
    }
  }
}

TEST(KernelChoice, PolarIterations) {
  const Choices table[] = {
      // Square: the Gram form would take more operations.
      {4096,
       4096,
       {"standard Half: mma_sync, mma_sync", "standard Half: narrow, narrow",
        "standard Half: strips, strips", "standard Half: mma_sync, mma_sync"}},
      // The Gram form from 1.5 : 1 on.
      {4096,
       11008,
       {"gram Half: mma_sync, mma_sync, mma_sync", "gram Half: narrow, narrow, narrow",
        "gram Half: strips, strips, strips", "gram Half: mma_sync, mma_sync, mma_sync"}},
      // 768 rows: too many for a block's shared memory, too few for cuBLAS on Blackwell.
      {768,
       2048,
       {"gram Half: mma_sync, mma_sync, mma_sync", "gram Half: narrow, narrow, narrow",
        "gram Half: mma_sync, mma_sync, mma_sync", "gram Half: mma_sync, mma_sync, mma_sync"}},
      // Heads: launches would be all the time they take.
      {64,
       1024,
       {"gram Half in one launch", "gram Half in one launch", "gram Half in one launch",
        "gram Half in one launch"}},
  };
  for (const auto& [k, l, of] : table) {
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(choice(kArchitectures[i], Side::shorter, k, l), of[i])
          << "sm_" << kArchitectures[i] << ", " << k << " x " << l;
    }
  }
  // right_spectral of 151936×1024: so long that float32 saves the restarts' passes over X, and of
  // float32 there are cuBLAS's products only. Strips of XXᵀ fill the device in parts of k; of R²
  // they would be four launches of a few tiles for one of 128.
  for (const int capability : kArchitectures) {
    EXPECT_EQ(choice(capability, Side::right, 1024, 151936), "gram Float: strips, plain, plain");
  }
}

TEST(SymmetricRoute, HalfPrecisionOnCuda) {
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    for (const int64_t n : {64, 128, 256, 768, 1024, 4096}) {
      for (const int capability : {80, 86, 89, 120}) {
        EXPECT_EQ(route(capability, dtype, n), mma_sync) << capability << " " << n;
      }
      // Without CUTLASS there is no wgmma kernel; mma.sync runs on Hopper too.
      EXPECT_EQ(symmetric_route(90, {dtype, n, n, true, false}), mma_sync) << n;
    }
    // One block, or less than two: half of a cluster would idle.
    for (const int64_t n : {64, 128, 255}) EXPECT_EQ(route(90, dtype, n), mma_sync) << n;
    for (const int64_t n : {256, 768, 4096}) EXPECT_EQ(route(90, dtype, n), wgmma) << n;
    for (const int64_t n : {64, 128, 1023}) EXPECT_EQ(route(100, dtype, n), mma_sync) << n;
    for (const int64_t n : {1024, 2048}) EXPECT_EQ(route(100, dtype, n), plain) << n;
    for (const int64_t n : {2560, 4096}) EXPECT_EQ(route(100, dtype, n), strips) << n;
    // Rows at odd addresses, and devices before cp.async.
    for (const int capability : kArchitectures) {
      EXPECT_EQ(route(capability, dtype, 768, 768, false), plain);
      EXPECT_EQ(route(capability, dtype, 4096, 4096, false), strips);
    }
    EXPECT_EQ(route(75, dtype, 768), plain);
    EXPECT_EQ(route(75, dtype, 4096), strips);
  }
}

TEST(SymmetricRoute, SlicesBoundTheWorkspace) {
  EXPECT_EQ(symmetric_slice(1000, 0), 1000);
  EXPECT_EQ(symmetric_slice(3, 1 << 20), 3);
  EXPECT_EQ(symmetric_slice(256, 1 << 20), 256);
  EXPECT_EQ(symmetric_slice(257, 1 << 20), 256);
  EXPECT_EQ(symmetric_slice(5, int64_t{1} << 40), 1);
  // 160 of 1024 x 8192 in two parts on Hopper would take 720 MiB.
  const sm90::Plan plan = sm90::plan_for(1024, 8192, true);
  const int32_t pairs = sm90::pairs_of(sm90::triangle_of(1024, plan.width, true));
  const int64_t bytes = kernels::cuda::partial_bytes(sm90::kNarrowCosts, pairs, plan.cut);
  EXPECT_GT(160 * bytes, 700 << 20);
  const int64_t slice = symmetric_slice(160, bytes);
  EXPECT_LE(slice * bytes, 256 << 20);
  EXPECT_GT((slice + 1) * bytes, 256 << 20);
}

TEST(SymmetricRoute, SinglePrecisionAndCpu) {
  for (const int capability : kArchitectures) {
    for (const int64_t n : {768, 1024, 2559}) EXPECT_EQ(route(capability, at::kFloat, n), plain);
    for (const int64_t n : {2560, 4096}) EXPECT_EQ(route(capability, at::kFloat, n), strips);
    // In parts of k the strips of a long product fill the device.
    EXPECT_EQ(route(capability, at::kFloat, 1024, 8191), plain);
    EXPECT_EQ(route(capability, at::kFloat, 1024, 8192), strips);
    EXPECT_EQ(route(capability, at::kFloat, 1023, 1 << 20), plain);
  }
  EXPECT_EQ(route(0, at::kFloat, 128), plain);
  EXPECT_EQ(route(0, at::kFloat, 1024), strips);
  EXPECT_EQ(route(0, at::kBFloat16, 256), plain);
  EXPECT_EQ(route(0, at::kBFloat16, 1024), strips);
  EXPECT_EQ(route(0, at::kHalf, 1024), plain);
}

}  // namespace
