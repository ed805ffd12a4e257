#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "report/series.h"

namespace narrowgauge::report {

// What a run directory tells about its run, read with patience: logs of millions of lines, of runs
// that were killed, resumed, that diverged, or of other versions.

struct Sample {
  int64_t step = 0;
  std::string prompt;
  std::string text;
};

struct RunLog {
  std::string name;                             // the directory's
  std::map<std::string, Series> series;         // by metric; of nested objects "outer/inner"
  std::vector<Sample> samples;                  // the first and the last ones, at most kMaxSamples
  std::map<std::string, std::string> settings;  // "section.key" -> text, of config.yaml
  int64_t num_lines = 0;                        // of metrics.jsonl that could be read
  int64_t num_bad_lines = 0;                    // torn or no JSON object with a step
  int64_t num_repeated = 0;                     // steps that came again: the run was resumed

  static constexpr size_t kMaxSamples = 12;
};

// Throws std::runtime_error if `directory` holds no metrics.jsonl that can be opened. Everything
// else that is missing stays empty.
RunLog read_run_log(const std::filesystem::path& directory);

// Calls `visit` for every numeric value of every line: NaN and infinities, which some writers spell
// null, NaN or "inf", are passed on as such. Returns the number of lines that could not be read.
using MetricVisitor =
    std::function<void(int64_t line, int64_t step, const std::string& metric, double value)>;
int64_t visit_metrics(const std::filesystem::path& metrics_file, const MetricVisitor& visit);

}  // namespace narrowgauge::report
