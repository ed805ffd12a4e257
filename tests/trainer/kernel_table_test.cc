#include "trainer/kernel_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace narrowgauge::trainer {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(KernelTable, NothingRan) { EXPECT_EQ(kernel_table({}, {}), "nothing ran on the device\n"); }

TEST(KernelTable, BusyIdleAndRows) {
  // Out of order, one inside of another, one on a second stream that bridges a gap.
  const std::vector<DeviceEvent> events = {
      {"void narrowgauge::nn::kernels::(anonymous namespace)::norm<float>", "", 6'000'000,
       8'000'000},
      {"gemm", "aten::mm 2x3 3x4", 0, 2'000'000, 4e9},
      {"gemm", "aten::mm 2x3 3x4", 3'000'000, 5'000'000, 4e9},
      {"gemm", "aten::mm 8x3 3x4", 9'000'000, 10'000'000, 4e9},
      {"copy", "", 3'500'000, 5'500'000},
  };
  const std::string text =
      kernel_table(events, std::vector<RuntimeCall>{{"cudaLaunchKernel", 1'000'000},
                                                    {"cudaStreamSynchronize", 3'000'000},
                                                    {"cudaLaunchKernel", 500'000}});
  EXPECT_THAT(text, HasSubstr("10.000 ms from the first kernel to the last: busy 7.500 ms "
                              "(75.0 %), idle 2.500 ms in 3 gaps; 5 kernels"));
  EXPECT_THAT(text, HasSubstr("     4.000  40.00       2    2000.0        2  aten::mm 2x3 3x4  "
                              "gemm\n"));
  EXPECT_THAT(text, HasSubstr("     2.000  20.00       1    2000.0           nn::norm<float>\n"));
  EXPECT_THAT(text, HasSubstr("    1000.0  gemm  ->  gemm\n"));
  EXPECT_THAT(text, HasSubstr("     500.0  copy  ->  nn::norm<float>\n"));
  EXPECT_THAT(text, HasSubstr("     3.000       1  cudaStreamSynchronize\n"
                              "     1.500       2  cudaLaunchKernel\n"));
  EXPECT_LT(text.find("aten::mm 2x3"), text.find("aten::mm 8x3"));
}

TEST(KernelTable, LongNamesAreCutAndPercentSignsStay) {
  const std::vector<DeviceEvent> events = {{std::string(1000, 'k') + "end", "", 5, 5},
                                           {"%s%n", "", 7, 7}};
  const std::string text = kernel_table(events, {});
  EXPECT_THAT(text, Not(HasSubstr("end")));
  EXPECT_THAT(text, HasSubstr("%s%n"));
}

}  // namespace
}  // namespace narrowgauge::trainer
