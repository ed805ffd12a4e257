#include "trainer/step_guard.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace narrowgauge::trainer {

StepGuard::StepGuard(const TrainConfig& config)
    : max_skipped_steps_(config.training.max_skipped_steps),
      sigma_factor_(config.training.sigma_factor),
      applies_in_backward_(config.optimizer.early_step_in_backward),
      counts_(at::zeros({kNumCounts}, at::kLong)),
      losses_(at::full({config.training.rolling_interval_length},
                       std::numeric_limits<double>::quiet_NaN(), at::kDouble)) {}

StepGuard::Verdict StepGuard::judge(int64_t step, double loss, double grad_norm) {
  if (!std::isfinite(loss) || !std::isfinite(grad_norm)) {
    ++count(kSkippedSteps);
    if (++count(kSkippedInARow) > max_skipped_steps_ || applies_in_backward_) {
      stop(step, loss, grad_norm);
    }
    return Verdict::kSkip;
  }
  count(kSkippedInARow) = 0;
  if (sigma_factor_ == 0) {
    return Verdict::kApply;
  }
  const double z = z_score(loss);
  if (z > sigma_factor_) {
    spike_ = {step, loss, z, step + skipped_batches()};
    return Verdict::kRollBack;
  }
  losses_.mutable_data_ptr<double>()[count(kNumLosses)++ % losses_.numel()] = loss;
  return Verdict::kApply;
}

void StepGuard::stop(int64_t step, double loss, double grad_norm) const {
  const std::string what = "step " + std::to_string(step) + ": loss is " + std::to_string(loss) +
                           " and the gradient norm is " + std::to_string(grad_norm);
  if (applies_in_backward_) {
    throw std::runtime_error(
        what +
        "; optimizer.early_step_in_backward has applied it. Start again to go on from the last "
        "checkpoint, without that key or with a lower optimizer.lr");
  }
  throw std::runtime_error(
      what + ", the " + std::to_string(count(kSkippedInARow)) +
      ". such step in a row (training.max_skipped_steps " + std::to_string(max_skipped_steps_) +
      "); nothing of them was applied. Lower optimizer.lr or go back with checkpoint.load_step");
}

double StepGuard::z_score(double loss) const {
  const int64_t size = losses_.numel();
  const int64_t used = std::min(count(kNumLosses), size);
  const auto* values = losses_.const_data_ptr<double>();
  int64_t present = 0;
  double sum = 0;
  for (int64_t i = 0; i < used; ++i) {
    if (!std::isnan(values[i])) {
      ++present;
      sum += values[i];
    }
  }
  if (present < std::max<int64_t>(2, size / 2)) {
    return 0.0;
  }
  const double mean = sum / static_cast<double>(present);
  double squares = 0;
  for (int64_t i = 0; i < used; ++i) {
    squares += std::isnan(values[i]) ? 0 : (values[i] - mean) * (values[i] - mean);
  }
  const double deviation = std::sqrt(squares / static_cast<double>(present - 1));
  return deviation > 0 ? (loss - mean) / deviation : 0.0;
}

int64_t StepGuard::skipped_batches() const { return count(kSkippedBatches); }

void StepGuard::go_on_with_batch(int64_t batch, int64_t step) {
  count(kSkippedBatches) = batch - step;
}

int64_t StepGuard::skipped_steps() const { return count(kSkippedSteps); }

int64_t StepGuard::skipped_in_a_row() const { return count(kSkippedInARow); }

NamedBuffers StepGuard::named_buffers() {
  NamedBuffers buffers = {{"guard.counts", counts_}};
  if (sigma_factor_ > 0) {
    // The length is in the name: with another one the window begins anew.
    buffers.emplace_back("guard.losses_" + std::to_string(losses_.numel()), losses_);
  }
  return buffers;
}

int64_t& StepGuard::count(Count which) const { return counts_.mutable_data_ptr<int64_t>()[which]; }

}  // namespace narrowgauge::trainer
