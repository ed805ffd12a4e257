#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace narrowgauge::bench {

// One process that trained a few steps.
struct TimedRun {
  std::vector<double> step_seconds;  // without those of the warm-up
  double first_step_seconds = 0;     // from the start of the process to the end of its first step
  int64_t peak_memory_bytes = 0;
};

// All runs of a mode ("bf16", "float8.rowwise"), one for each round.
struct ModeTiming {
  std::string mode;
  std::vector<TimedRun> rounds;
};

// What was timed; two of them can be compared if all but `date` are equal.
struct TimingSubject {
  std::string date;     // "2026-11-24"
  std::string machine;  // the processor's name, or the GPU's
  int64_t threads = 0;
  std::string model;  // its shape and batch
  int64_t tokens_per_step = 0;
  int64_t steps = 0;   // of a run, without the warm-up
  int64_t warmup = 0;  // steps
};

// The value below which the share `p` of the values lies, between two values by their distance
// (numpy's default, Hyndman and Fan's type 7). REQUIRES: at least one value, 0 <= p <= 1.
double quantile(std::vector<double> values, double p);

// A row of the table.
struct ModeSummary {
  std::string mode;
  double step_seconds = 0;  // median over all rounds' steps
  double first_quartile_seconds = 0;
  double third_quartile_seconds = 0;
  double tokens_per_second = 0;   // at the median
  double ratio = 0;               // of speed to the first mode
  int64_t peak_memory_bytes = 0;  // the highest of the rounds
  double first_step_seconds = 0;  // median over rounds
};

// The ratio is the median over rounds of that of the medians in a round: runs of a round follow
// each other closely, so that a machine whose speed drifts changes both sides. REQUIRES: the modes
// have equally many rounds, at least one, of at least one step each.
std::vector<ModeSummary> summarize(const std::vector<ModeTiming>& modes, int64_t tokens_per_step);

}  // namespace narrowgauge::bench
