#include "bench/step_timing.h"

#include <algorithm>
#include <cmath>

namespace narrowgauge::bench {
namespace {

double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

double speed_ratio(const ModeTiming& mode, const ModeTiming& reference) {
  std::vector<double> ratios;
  for (size_t i = 0; i < mode.rounds.size(); ++i) {
    ratios.push_back(median(reference.rounds[i].step_seconds) /
                     median(mode.rounds[i].step_seconds));
  }
  return median(ratios);
}

}  // namespace

double quantile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  const double at = p * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(std::floor(at));
  const size_t above = std::min(below + 1, values.size() - 1);
  return std::lerp(values[below], values[above], at - static_cast<double>(below));
}

std::vector<ModeSummary> summarize(const std::vector<ModeTiming>& modes, int64_t tokens_per_step) {
  std::vector<ModeSummary> rows;
  for (const ModeTiming& mode : modes) {
    ModeSummary row;
    row.mode = mode.mode;
    std::vector<double> seconds;
    std::vector<double> first_steps;
    for (const TimedRun& run : mode.rounds) {
      seconds.insert(seconds.end(), run.step_seconds.begin(), run.step_seconds.end());
      first_steps.push_back(run.first_step_seconds);
      row.peak_memory_bytes = std::max(row.peak_memory_bytes, run.peak_memory_bytes);
    }
    row.step_seconds = median(seconds);
    row.first_quartile_seconds = quantile(seconds, 0.25);
    row.third_quartile_seconds = quantile(seconds, 0.75);
    row.tokens_per_second = static_cast<double>(tokens_per_step) / row.step_seconds;
    row.ratio = speed_ratio(mode, modes.front());
    row.first_step_seconds = median(first_steps);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace narrowgauge::bench
