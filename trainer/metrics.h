#pragma once

#include <cstdint>
#include <fstream>
#include <string>

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
      0;                    // of this process (resident) or its GPU (allocated), largest so far
  int64_t tokens_seen = 0;  // since step 1, resumed runs included
};

// <run>/metrics.jsonl: one JSON object a line, flushed line by line so that a killed run loses
// none.
class MetricsLog {
 public:
  // Keeps the lines of steps up to `last_step` and drops later ones (and a torn last line): a
  // resumed run repeats those steps. Throws std::runtime_error if the file can not be written.
  MetricsLog(const std::string& path, int64_t last_step);

  void log_step(const StepMetrics& metrics);
  void log_validation(int64_t step, double loss, int64_t tokens, double seconds);

 private:
  void write_line(const std::string& line);

  std::string path_;
  std::ofstream file_;
};

// Largest resident set of this process so far, in bytes.
int64_t peak_resident_bytes();

// Progress on standard error: one line rewritten in place on a terminal, a plain line every few
// seconds elsewhere.
class ProgressLine {
 public:
  // `total_steps` is the last step's number. REQUIRES: first_step <= total_steps.
  ProgressLine(int64_t first_step, int64_t total_steps, int64_t log_interval);
  ~ProgressLine();

  void update(const StepMetrics& metrics);

  // Prints `text` on a line of its own without disturbing the progress line.
  void message(const std::string& text);

 private:
  bool is_terminal_;
  bool line_open_ = false;
  int64_t first_step_;
  int64_t total_steps_;
  int64_t log_interval_;
  double last_line_seconds_;
  double step_seconds_average_ = 0;
};

}  // namespace narrowgauge::trainer
