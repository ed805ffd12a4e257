#include "float8/amax_history.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace narrowgauge::float8 {
namespace {

std::vector<float> values_of(const AmaxHistory& history) {
  const auto* values = history.values().const_data_ptr<float>();
  return {values, values + history.values().numel()};
}

TEST(AmaxHistory, RollsNewestFirst) {
  AmaxHistory history(3, AmaxComputeAlgo::kMax, {});
  EXPECT_FALSE(history.scale().defined());
  for (const float amax : {1.0F, 4.0F, 2.0F}) {
    history.push(amax);
  }
  EXPECT_EQ(values_of(history), (std::vector<float>{2, 4, 1}));
  EXPECT_EQ(history.scale().item<float>(), 448.0F / 4);
  history.push(3);
  EXPECT_EQ(history.scale().item<float>(), 448.0F / 4);
  history.push(0.5);  // 4 is forgotten
  EXPECT_EQ(values_of(history), (std::vector<float>{0.5, 3, 2}));
  EXPECT_EQ(history.scale().item<float>(), static_cast<float>(448.0 / 3));
}

TEST(AmaxHistory, PolicyDtypeAndRoundingCount) {
  AmaxHistory recent(4, AmaxComputeAlgo::kMostRecent, {.dtype = at::kFloat8_e5m2});
  recent.push(8);
  recent.push(2);
  EXPECT_EQ(recent.scale().item<float>(), 57344.0F / 2);
  AmaxHistory pow2(1, AmaxComputeAlgo::kMax, {.rounding = ScaleRounding::kPowerOf2});
  pow2.push(3);
  EXPECT_EQ(pow2.scale().item<float>(), 128.0F);  // 149.3 rounded down
}

// Zeros leave the scale: 448 / 1e-12 would saturate the first value that follows.
TEST(AmaxHistory, ZeroIsNotEnteredAndInfinityRefused) {
  AmaxHistory history(2, AmaxComputeAlgo::kMostRecent, {});
  history.push(0);
  EXPECT_FALSE(history.scale().defined());
  history.push(7);
  history.push(0);
  EXPECT_EQ(history.scale().item<float>(), 64.0F);
  EXPECT_THROW(history.push(std::numeric_limits<float>::infinity()), c10::Error);
  EXPECT_THROW(history.push(std::numeric_limits<float>::quiet_NaN()), c10::Error);
  EXPECT_EQ(values_of(history), (std::vector<float>{7, 0}));
  EXPECT_THROW(AmaxHistory(0, AmaxComputeAlgo::kMax, {}), c10::Error);
}

TEST(AmaxHistory, GoesOnFromACheckpoint) {
  AmaxHistory saved(3, AmaxComputeAlgo::kMax, {});
  saved.push(5);
  saved.push(1);
  AmaxHistory loaded(3, AmaxComputeAlgo::kMax, {});
  loaded.values().copy_(saved.values());
  loaded.restored();
  EXPECT_TRUE(loaded.scale().equal(saved.scale()));
  loaded.values().fill_(std::numeric_limits<float>::quiet_NaN());
  EXPECT_THROW(loaded.restored(), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::float8
