#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "bench/child_process.h"

namespace narrowgauge::trainer {

// `train` of this program as a process of its own, in `run_dir`, where log.txt has what it printed.
class TrainingProcess {
 public:
  // Creates the folder. `overrides` come before job.run_dir. Throws std::runtime_error if the
  // folder cannot be made.
  TrainingProcess(const std::string& config_path, std::vector<std::string> overrides,
                  const std::filesystem::path& run_dir);

  std::filesystem::path metrics_file() const { return run_dir_ / "metrics.jsonl"; }
  std::optional<int> exit_code() { return process_.exit_code(); }
  void terminate() const { process_.terminate(); }

  // "exit code 1: <last line of the log>"
  std::string describe_failure(int exit_code) const;

 private:
  std::filesystem::path run_dir_;
  bench::ChildProcess process_;
};

}  // namespace narrowgauge::trainer
