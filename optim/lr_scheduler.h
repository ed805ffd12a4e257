#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace narrowgauge::optim {

// Shape of the learning rate over a run, as torchtitan defines it (v0.2.2, lr_scheduler section).
struct LrSchedule {
  int64_t total_steps = 0;
  int64_t warmup_steps = 0;  // clamped to total_steps
  std::optional<double> decay_ratio =
      std::nullopt;                   // share of total_steps at the end; none: all after warm-up
  std::string decay_type = "linear";  // constant | linear | cosine | sqrt
  double min_lr_factor = 0.0;         // the decay goes from 1 to this
};

// Warm-up, stable, decay. A pure function of the step: it resumes anywhere.
class LrScheduler {
 public:
  // Throws std::invalid_argument on total_steps < 1, a negative warm-up, a share or a factor
  // outside [0, 1] or an unknown decay_type. Warm-up and decay that overlap shorten the decay.
  explicit LrScheduler(const LrSchedule& schedule);

  // Multiplies the base learning rate in the update with `step` updates before it, 0 <= step:
  //   step < warmup:            (step + 1) / warmup
  //   then, while stable:       1, for total + 1 - warmup - decay steps
  //   then, with progress p = (step + 1 - warmup - stable) / decay, at most 1:
  //     min + (1 - min) f(p);   linear 1 - p, sqrt 1 - sqrt(p), cosine (1 + cos(pi p)) / 2
  // The last update of the run has p = (decay - 1) / decay, so it still learns at min = 0.
  double factor(int64_t step) const;

 private:
  enum class Decay { kConstant, kLinear, kCosine, kSqrt };

  int64_t warmup_steps_ = 0;
  int64_t stable_steps_ = 0;
  int64_t decay_steps_ = 0;
  Decay decay_ = Decay::kLinear;
  double min_lr_factor_ = 0.0;
};

}  // namespace narrowgauge::optim
