#pragma once

#include <cstdint>
#include <functional>

namespace narrowgauge::exports {

// What was written, read back and found equal bit for bit.
struct ExportReport {
  int64_t quantized_weights = 0;
  int64_t codes = 0;
  int64_t scales = 0;
  int64_t plain_tensors = 0;
  uint64_t bytes = 0;  // of the files of weights
};

// Called with the part done, 0 to 1, and the stage: "writing" or "reading back".
using ExportProgress = std::function<void(double fraction, const char* stage)>;

}  // namespace narrowgauge::exports
