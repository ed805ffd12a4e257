#pragma once

#include <chrono>
#include <string>
#include <string_view>

namespace narrowgauge::trainer {

// Progress of the stages before training on standard error: rewritten in place on a terminal, a
// line every two seconds elsewhere.
class StageProgress {
 public:
  ~StageProgress();

  // `fraction` done of `stage`, 0 to 1. A new stage begins a new line.
  void update(std::string_view stage, double fraction);

 private:
  std::string stage_;
  std::chrono::steady_clock::time_point shown_;
  bool line_open_ = false;
};

}  // namespace narrowgauge::trainer
