// Which devices a build has code for.

#include "device.h"

#include "test_helpers.h"

namespace erlangen {
namespace {

TEST(Device, MachineCodeRunsOnItsMajorVersionFromItsMinorOn) {
  EXPECT_TRUE(has_code_for("80-real", 8, 0));
  EXPECT_TRUE(has_code_for("80-real", 8, 9));
  EXPECT_FALSE(has_code_for("86-real", 8, 0));
  EXPECT_FALSE(has_code_for("80-real", 9, 0));
  EXPECT_FALSE(has_code_for("80-real", 7, 5));
  EXPECT_TRUE(has_code_for("120-real", 12, 1));
  EXPECT_FALSE(has_code_for("100-real", 12, 0));
}

TEST(Device, PtxRunsOnWhatIsNewer) {
  for (const char* architecture : {"90", "90-virtual"}) {
    EXPECT_TRUE(has_code_for(architecture, 9, 0));
    EXPECT_TRUE(has_code_for(architecture, 10, 3));
    EXPECT_TRUE(has_code_for(architecture, 12, 0));
    EXPECT_FALSE(has_code_for(architecture, 8, 9));
  }
}

TEST(Device, LettersTieCodeToOneDeviceOrFamily) {
  for (const char* suffix : {"", "-real", "-virtual"}) {
    EXPECT_TRUE(has_code_for(std::string("90a") + suffix, 9, 0));
    EXPECT_FALSE(has_code_for(std::string("90a") + suffix, 10, 0));
    EXPECT_FALSE(has_code_for(std::string("100a") + suffix, 10, 3));
    EXPECT_TRUE(has_code_for(std::string("100f") + suffix, 10, 3));
    EXPECT_FALSE(has_code_for(std::string("100f") + suffix, 12, 0));
  }
}

TEST(Device, AnyOfTheListWillDo) {
  const char* all = "80-real,90a-real,100,120";
  for (const auto& [major, minor] : {std::pair(8, 6), {9, 0}, {10, 0}, {11, 0}, {12, 1}}) {
    EXPECT_TRUE(has_code_for(all, major, minor)) << major << "." << minor;
  }
  EXPECT_FALSE(has_code_for(all, 7, 5));
  EXPECT_FALSE(has_code_for("80-real,120-real", 9, 0));
  EXPECT_TRUE(has_code_for("native", 9, 0));
  EXPECT_FALSE(has_code_for("", 9, 0));
}

TEST(Device, OlderOnesAreRefused) {
  // Whatever the build has for them.
  for (const char* architectures : {"75-real,80-real", "native"}) {
    testing::expect_raises<c10::ValueError>(
        {"param 3 is on cuda:1, of compute capability 7.5; allowed: 8.0 (Ampere) and newer"},
        [&] { check_capability(architectures, 7, 5, c10::Device(c10::kCUDA, 1), "param 3"); });
  }
  EXPECT_NO_THROW(check_capability("80-real", 8, 0, c10::kCUDA, "param 3"));
}

TEST(Device, OnesThatTheBuildHasNoCodeForAreRefused) {
  testing::expect_raises<c10::ValueError>(
      {"param 3 is on cuda:1, of compute capability 9.0, but erlangen was built for 80-real,100. "
       "Install it from source with TORCH_CUDA_ARCH_LIST=\"9.0\" or on a machine with this GPU."},
      [] { check_capability("80-real,100", 9, 0, c10::Device(c10::kCUDA, 1), "param 3"); });
  EXPECT_NO_THROW(check_capability("80-real,90a-real", 9, 0, c10::kCUDA, "param 3"));
}

TEST(Device, TheCpuNeedsNone) { EXPECT_NO_THROW(check_device(c10::kCPU, "here")); }

}  // namespace
}  // namespace erlangen
