// Which devices a build has code for.

#include "device.h"

#include <gtest/gtest.h>

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

TEST(Device, TheCpuNeedsNone) { EXPECT_NO_THROW(check_device(c10::kCPU, "here")); }

}  // namespace
}  // namespace erlangen
