#include "trainer/progress_line.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace narrowgauge::trainer {
namespace {

constexpr double kPlainLineSeconds = 5.0;
constexpr double kAverageDecay = 0.9;  // of step_seconds in the ETA

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds));
  char text[32];
  if (whole >= 3600) {
    std::snprintf(text, sizeof text, "%ldh%02ldm", whole / 3600, whole / 60 % 60);
  } else if (whole >= 60) {
    std::snprintf(text, sizeof text, "%ldm%02lds", whole / 60, whole % 60);
  } else {
    std::snprintf(text, sizeof text, "%lds", whole);
  }
  return text;
}

}  // namespace

ProgressLine::ProgressLine(int64_t first_step, int64_t total_steps, int64_t log_interval)
    : is_terminal_(isatty(STDERR_FILENO) == 1),
      first_step_(first_step),
      total_steps_(total_steps),
      log_interval_(log_interval),
      last_line_seconds_(0) {}

ProgressLine::~ProgressLine() {
  if (line_open_) {
    std::fputc('\n', stderr);
  }
}

void ProgressLine::update(const StepMetrics& metrics) {
  const bool is_first = metrics.step == first_step_;
  // The first step warms caches up; it would spoil the ETA.
  step_seconds_average_ =
      metrics.step <= first_step_ + 1
          ? metrics.step_seconds
          : kAverageDecay * step_seconds_average_ + (1 - kAverageDecay) * metrics.step_seconds;
  const double now = now_seconds();
  const bool is_due = is_terminal_ || is_first || metrics.step == total_steps_ ||
                      metrics.step % log_interval_ == 0 ||
                      now - last_line_seconds_ >= kPlainLineSeconds;
  if (!is_due) {
    return;
  }
  last_line_seconds_ = now;
  const std::string eta =
      duration_text(static_cast<double>(total_steps_ - metrics.step) * step_seconds_average_);
  std::fprintf(
      stderr,
      "%sstep %ld/%ld  loss %.4f  grad_norm %.4f  lr %.2e  %.0f tokens/s  memory %.2f GiB  "
      "ETA %s%s%s%s",
      is_terminal_ ? "\r\033[K" : "", metrics.step, total_steps_, metrics.loss, metrics.grad_norm,
      metrics.lr, metrics.tokens_per_second,
      static_cast<double>(metrics.peak_memory_bytes) / (1 << 30), eta.c_str(),
      note_.empty() ? "" : "  ", note_.c_str(), is_terminal_ ? "" : "\n");
  std::fflush(stderr);
  line_open_ = is_terminal_;
}

void ProgressLine::message(const std::string& text) {
  std::fprintf(stderr, "%s%s\n", line_open_ ? "\r\033[K" : "", text.c_str());
  line_open_ = false;
}

}  // namespace narrowgauge::trainer
