#include "trainer/metrics.h"

#include <sys/resource.h>

#include <nlohmann/json.hpp>

namespace narrowgauge::trainer {

std::string step_line(const StepMetrics& metrics) {
  return nlohmann::ordered_json{{"step", metrics.step},
                                {"loss", metrics.loss},
                                {"grad_norm", metrics.grad_norm},
                                {"lr", metrics.lr},
                                {"tokens_per_second", metrics.tokens_per_second},
                                {"step_seconds", metrics.step_seconds},
                                {"peak_memory_bytes", metrics.peak_memory_bytes},
                                {"tokens_seen", metrics.tokens_seen}}
      .dump();
}

std::string validation_line(int64_t step, double loss, int64_t tokens, double seconds) {
  return nlohmann::ordered_json{{"step", step},
                                {"validation_loss", loss},
                                {"validation_tokens", tokens},
                                {"validation_seconds", seconds}}
      .dump();
}

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace narrowgauge::trainer
