#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "trainer/config.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// A loss far above those before it.
struct LossSpike {
  int64_t step = 0;
  double loss = 0;
  double z_score = 0;      // standard deviations above the mean of the window
  int64_t next_batch = 0;  // of the order of batches: the first one that has not been trained on
};

// Decides what becomes of a step once its loss and gradient norm are known, which are equal on all
// ranks; so is the decision, without another collective. It is a function of the numbers so far,
// which checkpoints hold: a resumed run decides alike.
class StepGuard {
 public:
  explicit StepGuard(const TrainConfig& config);

  enum class Verdict {
    kApply,
    kSkip,      // not finite: nothing of it may be applied
    kRollBack,  // a spike, see spike(): go on from an older state behind its batches
  };
  // Throws std::runtime_error with a remedy when more than training.max_skipped_steps in a row are
  // not finite, or when one is that has been applied already.
  Verdict judge(int64_t step, double loss, double grad_norm);
  const std::optional<LossSpike>& spike() const { return spike_; }

  // Of the batches so far, those that the run passed over. Step n, from 1, trains on batch
  // n - 1 + skipped_batches().
  int64_t skipped_batches() const;
  // The run stands after `step` and goes on with this batch.
  void go_on_with_batch(int64_t batch, int64_t step);
  int64_t skipped_steps() const;
  int64_t skipped_in_a_row() const;

  // "guard.counts" and, with the rule for spikes, "guard.losses_N", the last N.
  NamedBuffers named_buffers();

 private:
  enum Count { kNumLosses, kSkippedInARow, kSkippedSteps, kSkippedBatches, kNumCounts };

  int64_t& count(Count which) const;
  [[noreturn]] void stop(int64_t step, double loss, double grad_norm) const;
  // Of `loss` among the last ones; 0 with too few of them.
  double z_score(double loss) const;

  int64_t max_skipped_steps_;
  double sigma_factor_;  // 0: no rule for spikes
  bool applies_in_backward_;
  at::Tensor counts_;  // int64 [kNumCounts]
  at::Tensor losses_;  // fp64, a ring; NaN where there is none yet
  std::optional<LossSpike> spike_;
};

}  // namespace narrowgauge::trainer
