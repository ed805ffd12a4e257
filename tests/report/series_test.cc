#include "report/series.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace narrowgauge::report {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(Series, KeepsEveryPointWhileThereIsRoom) {
  Series series;
  for (int64_t step = 1; step <= 100; ++step) {
    series.add(step, 1.0 / static_cast<double>(step));
  }
  const auto buckets = series.buckets();
  ASSERT_EQ(buckets.size(), 100u);
  EXPECT_EQ(buckets[0].step, 1);
  EXPECT_EQ(buckets[0].mean(), 1.0);
  EXPECT_EQ(buckets[99].last, 0.01);
  EXPECT_EQ(series.last(), 0.01);
}

TEST(Series, MillionsOfPointsKeepTheirExtremesInBoundedMemory) {
  Series series(64);
  std::mt19937 random(0);
  std::uniform_real_distribution<double> values(0, 1);
  double sum = 0;
  constexpr int64_t kCount = 3'000'000;
  for (int64_t step = 1; step <= kCount; ++step) {
    const double value = step == 1'234'567 ? 50 : step == 2'345'678 ? -50 : values(random);
    sum += value;
    series.add(step, value);
  }
  const auto buckets = series.buckets();
  EXPECT_LE(buckets.size(), 64u);
  EXPECT_GT(buckets.size(), 16u);
  EXPECT_EQ(series.max(), 50);
  EXPECT_EQ(series.min(), -50);
  EXPECT_EQ(series.last_step(), kCount);
  double bucket_sum = 0;
  int64_t count = 0;
  int64_t before = 0;
  for (const auto& bucket : buckets) {
    EXPECT_GT(bucket.step, before);
    before = bucket.step;
    EXPECT_LE(bucket.min, bucket.mean());
    EXPECT_LE(bucket.mean(), bucket.max);
    bucket_sum += bucket.sum;
    count += bucket.count;
  }
  EXPECT_EQ(count, kCount);
  EXPECT_NEAR(bucket_sum, sum, 1e-6 * sum);
}

TEST(Series, SetsNotFiniteValuesApart) {
  Series series;
  series.add(1, 2.0);
  series.add(2, kNaN);
  series.add(3, -std::numeric_limits<double>::infinity());
  series.add(-1, 7.0);
  EXPECT_EQ(series.num_finite(), 1);
  EXPECT_EQ(series.num_not_finite(), 2);
  EXPECT_EQ(series.not_finite_steps(), (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(series.max(), 2.0);
  EXPECT_TRUE(series.ends_not_finite());
  series.add(4, 1.0);
  EXPECT_FALSE(series.ends_not_finite());
  Series nothing;
  nothing.add(5, kNaN);
  EXPECT_TRUE(nothing.empty());
  EXPECT_TRUE(nothing.buckets().empty());
}

TEST(Series, StepsMayComeAgainAndGoBack) {
  Series series(4);
  for (const int64_t step : {100, 200, 150, 3, 200}) {
    series.add(step, static_cast<double>(step) + 1);
  }
  series.add(200, 5);
  EXPECT_EQ(series.last_step(), 200);
  EXPECT_EQ(series.last(), 5);
  EXPECT_EQ(series.num_finite(), 6);
  EXPECT_EQ(series.buckets().back().last, 5);
}

TEST(Series, HugeStepsDoNotTakeHugeMemory) {
  Series series(2);
  series.add(0, 1);
  series.add(1'000'000'000'000, 2);
  EXPECT_EQ(series.buckets().size(), 2u);
}

}  // namespace
}  // namespace narrowgauge::report
