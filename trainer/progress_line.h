#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "trainer/metrics.h"

namespace narrowgauge::trainer {

// Progress on standard error: one line rewritten in place on a terminal, a plain line every few
// seconds elsewhere.
class ProgressLine {
 public:
  // `total_steps` is the last step's number. REQUIRES: first_step <= total_steps.
  ProgressLine(int64_t first_step, int64_t total_steps, int64_t log_interval);
  ~ProgressLine();

  void update(const StepMetrics& metrics);

  // What stands at the end of the next lines ("saving step 500: 43 %"); "" for nothing.
  void set_note(std::string note) { note_ = std::move(note); }

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
  std::string note_;
};

}  // namespace narrowgauge::trainer
