#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace narrowgauge::trainer {

// One training step as it is logged. Loss is the mean over the global batch's valid tokens in nats.
struct StepMetrics {
  int64_t step = 0;  // 1 for the first
  double loss = 0;
  double grad_norm = 0;  // before clipping
  double lr = 0;
  double tokens_per_second = 0;  // of all ranks
  double step_seconds = 0;
  int64_t peak_memory_bytes =
      0;                      // of this process (resident) or its GPU (allocated), largest so far
  int64_t tokens_seen = 0;    // since step 1, resumed runs included
  bool is_skipped = false;    // nothing of it was applied
  int64_t skipped_steps = 0;  // since step 1
  // Of this rank's collectives for the model, where they run beside it: how long they took, other
  // ranks' lateness included, and how long the model stood still for them. The rest was hidden.
  std::optional<double> communication_seconds = std::nullopt;
  std::optional<double> exposed_communication_seconds = std::nullopt;
};

// Lines of <run>/metrics.jsonl.
std::string step_line(const StepMetrics& metrics);
// The run stands at `step` again because of the loss at `from_step`; skipped_batches: since step 1.
std::string rollback_line(int64_t step, int64_t from_step, double loss, double z_score,
                          int64_t skipped_batches);
std::string validation_line(int64_t step, double loss, int64_t tokens, double seconds);

// The same for TensorBoard: tags as torchtitan has them, memory in GiB.
std::vector<std::pair<std::string, double>> step_scalars(const StepMetrics& metrics);

// Largest resident set of this process so far, in bytes.
int64_t peak_resident_bytes();

}  // namespace narrowgauge::trainer
