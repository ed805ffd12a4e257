#include "optim/lr_scheduler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

namespace narrowgauge::optim {
namespace {

struct Case {
  LrSchedule schedule;
  std::vector<double> factors;  // of steps 0, 1, ...
};

// Values from torchtitan's linear_warmup_stable_decay written again in Python: plain decay, warm-up
// and decay that overlap, a long warm-up, a share whose half rounds to even, no decay.
const Case kCases[] = {
    {{.total_steps = 10,
      .warmup_steps = 2,
      .decay_ratio = std::nullopt,
      .decay_type = "linear",
      .min_lr_factor = 0.0},
     {0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125}},
    {{.total_steps = 10,
      .warmup_steps = 2,
      .decay_ratio = 0.8,
      .decay_type = "linear",
      .min_lr_factor = 0.0},
     {0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125}},
    {{.total_steps = 10,
      .warmup_steps = 0,
      .decay_ratio = std::nullopt,
      .decay_type = "cosine",
      .min_lr_factor = 0.1},
     {1.0, 0.9779754323328191, 0.9140576474687263, 0.8145033635316129, 0.6890576474687263, 0.55,
      0.41094235253127376, 0.2854966364683872, 0.18594235253127372, 0.12202456766718092}},
    {{.total_steps = 10,
      .warmup_steps = 3,
      .decay_ratio = 0.25,
      .decay_type = "sqrt",
      .min_lr_factor = 0.05},
     {0.3333333333333333, 0.6666666666666666, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
      0.3282485578727798}},
    {{.total_steps = 10,
      .warmup_steps = 3,
      .decay_ratio = 0.5,
      .decay_type = "cosine",
      .min_lr_factor = 0.0},
     {0.3333333333333333, 0.6666666666666666, 1.0, 1.0, 1.0, 1.0, 0.9045084971874737,
      0.6545084971874737, 0.34549150281252633, 0.09549150281252633}},
    {{.total_steps = 10,
      .warmup_steps = 4,
      .decay_ratio = 0.9,
      .decay_type = "linear",
      .min_lr_factor = 0.2},
     {0.25, 0.5, 0.75, 1.0, 1.0, 0.8666666666666667, 0.7333333333333334, 0.6000000000000001,
      0.46666666666666673, 0.3333333333333333}},
    {{.total_steps = 10,
      .warmup_steps = 15,
      .decay_ratio = std::nullopt,
      .decay_type = "linear",
      .min_lr_factor = 0.0},
     {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}},
    {{.total_steps = 10,
      .warmup_steps = 2,
      .decay_ratio = std::nullopt,
      .decay_type = "constant",
      .min_lr_factor = 0.0},
     {0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}},
    {{.total_steps = 5,
      .warmup_steps = 0,
      .decay_ratio = 0.5,
      .decay_type = "linear",
      .min_lr_factor = 0.0},
     {1.0, 1.0, 1.0, 1.0, 0.5}},
    {{.total_steps = 10,
      .warmup_steps = 2,
      .decay_ratio = 0.0,
      .decay_type = "cosine",
      .min_lr_factor = 0.0},
     {0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}},
};

TEST(LrScheduler, FollowsTorchtitan) {
  for (const Case& expected : kCases) {
    const LrScheduler scheduler(expected.schedule);
    for (size_t step = 0; step < expected.factors.size(); ++step) {
      EXPECT_NEAR(scheduler.factor(static_cast<int64_t>(step)), expected.factors[step], 1e-15)
          << expected.schedule.decay_type << ", warm-up " << expected.schedule.warmup_steps
          << ", step " << step;
    }
  }
}

TEST(LrScheduler, LastUpdateStillLearnsAndTheRateStaysAtItsEndAfterwards) {
  const LrScheduler scheduler({.total_steps = 100, .warmup_steps = 10});
  EXPECT_GT(scheduler.factor(99), 0.0);
  EXPECT_EQ(scheduler.factor(100), 0.0);
  EXPECT_EQ(scheduler.factor(1000), 0.0);
  const LrScheduler floor({.total_steps = 100, .decay_type = "cosine", .min_lr_factor = 0.1});
  EXPECT_DOUBLE_EQ(floor.factor(1000), 0.1);
}

TEST(LrScheduler, NeverLeavesTheRangeFromMinimumToOne) {
  for (const char* type : {"constant", "linear", "cosine", "sqrt"}) {
    for (const int64_t warmup : {0, 1, 7, 50, 99}) {
      for (const double ratio : {0.0, 0.01, 0.33, 1.0}) {
        const LrScheduler scheduler({50, warmup, ratio, type, 0.25});
        for (int64_t step = warmup; step < 60; ++step) {
          EXPECT_GE(scheduler.factor(step), 0.25) << type << " " << warmup << " " << ratio;
          EXPECT_LE(scheduler.factor(step), 1.0) << type << " " << warmup << " " << ratio;
        }
        EXPECT_GT(scheduler.factor(0), 0.0);
      }
    }
  }
}

TEST(LrScheduler, RefusesWhatMakesNoSense) {
  EXPECT_THROW(LrScheduler({.total_steps = 0}), std::invalid_argument);
  EXPECT_THROW(LrScheduler({.total_steps = 5, .warmup_steps = -1}), std::invalid_argument);
  EXPECT_THROW(LrScheduler({.total_steps = 5, .decay_ratio = 1.5}), std::invalid_argument);
  EXPECT_THROW(LrScheduler({.total_steps = 5, .decay_ratio = std::nan("")}), std::invalid_argument);
  EXPECT_THROW(LrScheduler({.total_steps = 5, .decay_type = "exponential"}), std::invalid_argument);
  EXPECT_THROW(LrScheduler({.total_steps = 5, .min_lr_factor = -0.1}), std::invalid_argument);
  EXPECT_THROW(LrScheduler({.total_steps = 5}).factor(-1), std::invalid_argument);
}

}  // namespace
}  // namespace narrowgauge::optim
