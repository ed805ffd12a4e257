#include "trainer/metrics.h"

#include <sys/resource.h>

#include <nlohmann/json.hpp>

namespace narrowgauge::trainer {

std::string step_line(const StepMetrics& metrics) {
  nlohmann::ordered_json line = {{"step", metrics.step},
                                 {"loss", metrics.loss},
                                 {"grad_norm", metrics.grad_norm},
                                 {"lr", metrics.lr},
                                 {"tokens_per_second", metrics.tokens_per_second},
                                 {"step_seconds", metrics.step_seconds},
                                 {"peak_memory_bytes", metrics.peak_memory_bytes},
                                 {"tokens_seen", metrics.tokens_seen}};
  if (metrics.skipped_steps > 0) {
    line["skipped_steps"] = metrics.skipped_steps;
  }
  if (metrics.communication_seconds) {
    line["communication_seconds"] = *metrics.communication_seconds;
    line["exposed_communication_seconds"] = *metrics.exposed_communication_seconds;
  }
  return line.dump();
}

std::string rollback_line(int64_t step, int64_t from_step, double loss, double z_score,
                          int64_t skipped_batches) {
  return nlohmann::ordered_json{{"step", step},
                                {"rollback_from", from_step},
                                {"spike_loss", loss},
                                {"z_score", z_score},
                                {"skipped_batches", skipped_batches}}
      .dump();
}

std::string validation_line(int64_t step, double loss, int64_t tokens, double seconds) {
  return nlohmann::ordered_json{{"step", step},
                                {"validation_loss", loss},
                                {"validation_tokens", tokens},
                                {"validation_seconds", seconds}}
      .dump();
}

std::vector<std::pair<std::string, double>> step_scalars(const StepMetrics& metrics) {
  constexpr double kGiB = 1 << 30;
  return {{"loss_metrics/global_avg_loss", metrics.loss},
          {"grad_norm", metrics.grad_norm},
          {"lr", metrics.lr},
          {"throughput(tps)", metrics.tokens_per_second},
          {"time_metrics/end_to_end(s)", metrics.step_seconds},
          {"memory/max_active(GiB)", static_cast<double>(metrics.peak_memory_bytes) / kGiB},
          {"n_tokens_seen", static_cast<double>(metrics.tokens_seen)}};
}

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace narrowgauge::trainer
