#include "optim/lr_scheduler.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

namespace narrowgauge::optim {
namespace {

void check(const LrSchedule& schedule) {
  if (schedule.total_steps < 1) {
    throw std::invalid_argument("expected total_steps >= 1, got " +
                                std::to_string(schedule.total_steps));
  }
  if (schedule.warmup_steps < 0) {
    throw std::invalid_argument("expected warmup_steps >= 0, got " +
                                std::to_string(schedule.warmup_steps));
  }
  // Written so that NaN fails too.
  if (schedule.decay_ratio && !(*schedule.decay_ratio >= 0 && *schedule.decay_ratio <= 1)) {
    throw std::invalid_argument("expected decay_ratio from 0 to 1, got " +
                                std::to_string(*schedule.decay_ratio));
  }
  if (!(schedule.min_lr_factor >= 0 && schedule.min_lr_factor <= 1)) {
    throw std::invalid_argument("expected min_lr_factor from 0 to 1, got " +
                                std::to_string(schedule.min_lr_factor));
  }
}

}  // namespace

LrScheduler::LrScheduler(const LrSchedule& schedule) : min_lr_factor_(schedule.min_lr_factor) {
  check(schedule);
  const int64_t total = schedule.total_steps;
  warmup_steps_ = std::min(schedule.warmup_steps, total);
  decay_steps_ = total - warmup_steps_;
  if (schedule.decay_ratio) {
    // Halves go to the even number, as Python's round.
    const double share = std::nearbyint(static_cast<double>(total) * *schedule.decay_ratio);
    decay_steps_ = std::min(decay_steps_, static_cast<int64_t>(share));
  }
  // One step more than is left: the decay ends after the run, not in its last update.
  stable_steps_ = total + 1 - warmup_steps_ - decay_steps_;
  if (schedule.decay_type == "constant") {
    decay_ = Decay::kConstant;
  } else if (schedule.decay_type == "linear") {
    decay_ = Decay::kLinear;
  } else if (schedule.decay_type == "cosine") {
    decay_ = Decay::kCosine;
  } else if (schedule.decay_type == "sqrt") {
    decay_ = Decay::kSqrt;
  } else {
    throw std::invalid_argument("expected decay_type constant, linear, cosine or sqrt, got '" +
                                schedule.decay_type + "'");
  }
}

double LrScheduler::factor(int64_t step) const {
  if (step < 0) {
    throw std::invalid_argument("expected step >= 0, got " + std::to_string(step));
  }
  if (step < warmup_steps_) {
    return static_cast<double>(step + 1) / static_cast<double>(warmup_steps_);
  }
  const int64_t into_decay = step + 1 - warmup_steps_ - stable_steps_;
  if (into_decay <= 0 || decay_ == Decay::kConstant) {
    return 1.0;
  }
  // Beyond the run the rate stays at its end.
  const double progress =
      decay_steps_ == 0
          ? 1.0
          : std::min(1.0, static_cast<double>(into_decay) / static_cast<double>(decay_steps_));
  double shape = 1.0 - progress;
  if (decay_ == Decay::kCosine) {
    shape = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  } else if (decay_ == Decay::kSqrt) {
    shape = 1.0 - std::sqrt(progress);
  }
  return min_lr_factor_ + (1.0 - min_lr_factor_) * shape;
}

}  // namespace narrowgauge::optim
