#include "trainer/stage_progress.h"

#include <unistd.h>

#include <cstdio>

namespace narrowgauge::trainer {

StageProgress::~StageProgress() {
  if (line_open_) {
    std::fputc('\n', stderr);
  }
}

void StageProgress::update(std::string_view stage, double fraction) {
  const auto now = std::chrono::steady_clock::now();
  const bool is_terminal = isatty(STDERR_FILENO) == 1;
  const auto pause = std::chrono::milliseconds(is_terminal ? 100 : 2000);
  if (stage == stage_ && fraction < 1.0 && now - shown_ < pause) {
    return;
  }
  if (line_open_ && stage != stage_) {
    std::fputc('\n', stderr);
  }
  stage_ = stage;
  shown_ = now;
  std::fprintf(stderr, "%s%s: %.0f %%%s", is_terminal ? "\r\033[K" : "", stage_.c_str(),
               100 * fraction, is_terminal ? "" : "\n");
  line_open_ = is_terminal;
}

}  // namespace narrowgauge::trainer
