#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// Traces of whole steps by libtorch's profiler: every profile_freq steps, after profiler_warmup
// steps with the profiler on, profiler_active steps are written. For each trace two files:
//   FOLDER/iteration_STEP/rankN_trace.json    for chrome://tracing and Perfetto
//   FOLDER/iteration_STEP/rankN_kernels.txt   what ran on the GPU; see kernel_table.h
//   FOLDER/iteration_STEP/rankN_operators.txt in place of it on a CPU; see operator_table.h
// One at a time in a process. Methods are called by the thread that runs the steps.
class StepProfiler {
 public:
  StepProfiler(const ProfilingConfig& config, std::filesystem::path run, int rank,
               c10::Device device);

  void before_step(int64_t step);
  // Waits for the device where a trace ends. A trace that cannot be written costs a line on
  // standard error.
  void after_step(int64_t step);

 private:
  enum class Phase { kOff, kWarmUp, kActive };
  void write(int64_t step);

  ProfilingConfig config_;
  std::filesystem::path folder_;
  int rank_;
  c10::Device device_;
  Phase phase_ = Phase::kOff;
};

}  // namespace narrowgauge::trainer
