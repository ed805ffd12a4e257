#include "trainer/step_guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

namespace narrowgauge::trainer {
namespace {

using Verdict = StepGuard::Verdict;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TrainConfig config_of(int64_t max_skipped_steps, double sigma_factor, int64_t window = 16) {
  TrainConfig config;
  config.training.max_skipped_steps = max_skipped_steps;
  config.training.sigma_factor = sigma_factor;
  config.training.rolling_interval_length = window;
  return config;
}

// A loss that falls and jitters, as losses do.
double loss_at(int64_t step) {
  return 2.0 + std::exp(-static_cast<double>(step) / 50.0) +
         0.05 * std::sin(12.9898 * static_cast<double>(step));
}

void copy_state(StepGuard& from, StepGuard& to) {
  const NamedBuffers source = from.named_buffers();
  const NamedBuffers destination = to.named_buffers();
  ASSERT_EQ(source.size(), destination.size());
  for (size_t i = 0; i < source.size(); ++i) {
    ASSERT_EQ(source[i].first, destination[i].first);
    destination[i].second.copy_(source[i].second);
  }
}

TEST(StepGuard, SkipsWhatIsNotFiniteAndStopsAfterTooManyInARow) {
  StepGuard guard(config_of(2, 0));
  EXPECT_EQ(guard.judge(1, 3.0, 1.0), Verdict::kApply);
  EXPECT_EQ(guard.judge(2, kNaN, 1.0), Verdict::kSkip);
  EXPECT_EQ(guard.judge(3, 3.0, kInfinity), Verdict::kSkip);
  EXPECT_EQ(guard.judge(4, 3.0, 1.0), Verdict::kApply);
  EXPECT_EQ(guard.judge(5, -kInfinity, 1.0), Verdict::kSkip);
  EXPECT_EQ(guard.judge(6, 3.0, kNaN), Verdict::kSkip);
  EXPECT_EQ(guard.skipped_steps(), 4);
  EXPECT_EQ(guard.skipped_in_a_row(), 2);
  try {
    guard.judge(7, kNaN, kNaN);
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(std::string(error.what()),
              "step 7: loss is nan and the gradient norm is nan, the 3. such step in a row "
              "(training.max_skipped_steps 2); nothing of them was applied. Lower optimizer.lr or "
              "go back with checkpoint.load_step");
  }
  StepGuard strict(config_of(0, 0));
  EXPECT_THROW(strict.judge(1, kNaN, 1.0), std::runtime_error);
}

TEST(StepGuard, StopsAtOnceWhereTheStepHasBeenApplied) {
  TrainConfig config = config_of(5, 0);
  config.optimizer.early_step_in_backward = true;
  StepGuard guard(config);
  EXPECT_EQ(guard.judge(1, 3.0, 1.0), Verdict::kApply);
  EXPECT_THROW(guard.judge(2, 3.0, kNaN), std::runtime_error);
}

TEST(StepGuard, RollsBackAtASpikeAndNotBefore) {
  StepGuard guard(config_of(5, 6));
  for (int64_t step = 1; step <= 200; ++step) {
    ASSERT_EQ(guard.judge(step, loss_at(step), 1.0), Verdict::kApply) << step;
  }
  EXPECT_EQ(guard.judge(201, loss_at(201) + 0.1, 1.0), Verdict::kApply);
  EXPECT_EQ(guard.judge(202, kNaN, 1.0), Verdict::kSkip);
  EXPECT_FALSE(guard.spike());
  EXPECT_EQ(guard.judge(203, 4.0, 1.0), Verdict::kRollBack);
  ASSERT_TRUE(guard.spike());
  EXPECT_EQ(guard.spike()->step, 203);
  EXPECT_EQ(guard.spike()->next_batch, 203);
  EXPECT_GT(guard.spike()->z_score, 6);
}

TEST(StepGuard, ASpikeIsNotJudgedByFewLossesNorByEqualOnes) {
  StepGuard few(config_of(5, 3, 16));
  for (int64_t step = 1; step <= 7; ++step) {
    ASSERT_EQ(few.judge(step, 2.0 + 0.01 * static_cast<double>(step % 2), 1.0), Verdict::kApply);
  }
  EXPECT_EQ(few.judge(8, 9.0, 1.0), Verdict::kApply);  // half of the window is not there yet
  StepGuard equal(config_of(5, 3, 16));
  for (int64_t step = 1; step <= 40; ++step) {
    ASSERT_EQ(equal.judge(step, 2.0, 1.0), Verdict::kApply);
  }
  EXPECT_EQ(equal.judge(41, 9.0, 1.0), Verdict::kApply);
}

TEST(StepGuard, ARunThatGoesOnDecidesAlike) {
  StepGuard straight(config_of(5, 4));
  for (int64_t step = 1; step <= 60; ++step) {
    straight.judge(step, step == 30 ? kNaN : loss_at(step), 1.0);
  }
  StepGuard resumed(config_of(5, 4));
  copy_state(straight, resumed);
  for (int64_t step = 61; step <= 90; ++step) {
    const double loss = step == 80 ? kNaN : step == 90 ? 3.5 : loss_at(step);
    ASSERT_EQ(straight.judge(step, loss, 1.0), resumed.judge(step, loss, 1.0)) << step;
  }
  ASSERT_TRUE(straight.spike() && resumed.spike());
  EXPECT_EQ(straight.spike()->z_score, resumed.spike()->z_score);
  EXPECT_EQ(resumed.skipped_steps(), 2);
}

// Loads what a checkpoint would hold and `to` asks for.
void copy_state_by_name(StepGuard& from, StepGuard& to) {
  for (const auto& [name, tensor] : from.named_buffers()) {
    for (const auto& [wanted, destination] : to.named_buffers()) {
      if (name == wanted) {
        destination.copy_(tensor);
      }
    }
  }
}

TEST(StepGuard, AWindowOfAnotherLengthBeginsEmpty) {
  StepGuard straight(config_of(5, 3, 16));
  for (int64_t step = 1; step <= 60; ++step) {
    straight.judge(step, loss_at(step), 1.0);
  }
  StepGuard longer(config_of(5, 3, 32));
  copy_state_by_name(straight, longer);
  for (int64_t step = 61; step <= 120; ++step) {
    ASSERT_EQ(longer.judge(step, loss_at(step), 1.0), Verdict::kApply) << step;
  }
  EXPECT_EQ(longer.judge(121, 9.0, 1.0), Verdict::kRollBack);
}

TEST(StepGuard, BatchesBehindASpikeFollowEachOther) {
  StepGuard guard(config_of(5, 4));
  EXPECT_EQ(guard.skipped_batches(), 0);
  guard.go_on_with_batch(203,
                         150);  // back from step 203 to 150: batches 150 to 202 are passed over
  EXPECT_EQ(guard.skipped_batches(), 53);
  for (int64_t step = 151; step <= 200; ++step) {
    guard.judge(step, loss_at(step), 1.0);
  }
  ASSERT_EQ(guard.judge(201, 9.0, 1.0), Verdict::kRollBack);
  EXPECT_EQ(guard.spike()->next_batch, 254);  // 200 + 53 was the offending one
}

TEST(StepGuard, ItsStateIsSmallAndTheWindowsLengthIsPartOfItsName) {
  EXPECT_EQ(StepGuard(config_of(5, 0)).named_buffers().size(), 1U);
  const NamedBuffers buffers = StepGuard(config_of(5, 4, 32)).named_buffers();
  ASSERT_EQ(buffers.size(), 2U);
  EXPECT_EQ(buffers[1].first, "guard.losses_32");
}

}  // namespace
}  // namespace narrowgauge::trainer
