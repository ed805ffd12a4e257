#include "bench/step_timing.h"

#include <gtest/gtest.h>

namespace narrowgauge::bench {
namespace {

TEST(Quantile, LiesBetweenValues) {
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 0.25), 1.75);  // numpy.quantile
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 1), 4);
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 0), 1);
  EXPECT_DOUBLE_EQ(quantile({7}, 0.75), 7);
}

TEST(Summarize, MediansQuartilesAndPeaks) {
  const std::vector<ModeTiming> modes = {
      {"bf16", {{{1, 1, 1}, 2, 100}, {{2, 2, 9}, 4, 300}, {{1, 1, 1}, 9, 200}}}};
  const ModeSummary row = summarize(modes, 10).front();
  EXPECT_DOUBLE_EQ(row.step_seconds, 1);  // of 1 1 1 1 1 1 2 2 9
  EXPECT_DOUBLE_EQ(row.first_quartile_seconds, 1);
  EXPECT_DOUBLE_EQ(row.third_quartile_seconds, 2);
  EXPECT_DOUBLE_EQ(row.tokens_per_second, 10);
  EXPECT_EQ(row.peak_memory_bytes, 300);
  EXPECT_DOUBLE_EQ(row.first_step_seconds, 4);
  EXPECT_DOUBLE_EQ(row.ratio, 1);
}

TEST(Summarize, ADriftingMachineLeavesTheRatio) {
  // Each round the machine is half as fast; the second mode is always 1.25 times as fast.
  const std::vector<ModeTiming> modes = {{"bf16", {{{1.0}, 0, 0}, {{2.0}, 0, 0}, {{4.0}, 0, 0}}},
                                         {"fast", {{{0.8}, 0, 0}, {{1.6}, 0, 0}, {{3.2}, 0, 0}}}};
  EXPECT_DOUBLE_EQ(summarize(modes, 1)[1].ratio, 1.25);
}

}  // namespace
}  // namespace narrowgauge::bench
