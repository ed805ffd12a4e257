#include "trainer/bench_command.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bench/step_timing.h"
#include "bench/timing_table.h"
#include "checkpoint/durable_file.h"
#include "report/run_log.h"
#include "trainer/bench_mode.h"
#include "trainer/config_reader.h"
#include "trainer/planned_run.h"
#include "trainer/stop_signal.h"
#include "trainer/training_process.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

constexpr auto kPollInterval = std::chrono::milliseconds(2);

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class TemporaryFolder {
 public:
  TemporaryFolder() : path_((fs::temp_directory_path() / "narrowgauge-bench-XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr) {
      throw std::runtime_error("cannot make a folder " + path_ + ": " + std::strerror(errno) +
                               "; set TMPDIR to one with room");
    }
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  fs::path path() const { return path_; }

 private:
  std::string path_;
};

// Steps and nothing beside them.
std::vector<std::string> run_overrides(const BenchOptions& options, const std::string& mode) {
  std::vector<std::string> overrides = options.overrides;
  const std::vector<std::string> of_mode = mode_overrides(mode);
  overrides.insert(overrides.end(), of_mode.begin(), of_mode.end());
  for (const char* const override :
       {"checkpoint.enable=false", "export.enable=false", "validation.interval=0",
        "generation.interval=0", "profiling.enable_profiling=false"}) {
    overrides.emplace_back(override);
  }
  overrides.push_back("training.steps=" + std::to_string(options.warmup + options.steps));
  return overrides;
}

// The configuration of a mode, so that a wrong one is known before anything is timed.
TrainConfig config_of(const BenchOptions& options, const std::string& mode) {
  try {
    return read_config(options.config_path, run_overrides(options, mode));
  } catch (const ConfigError& error) {
    throw ConfigError("mode " + mode + ": " + error.what());
  }
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof text, "%F", std::gmtime(&now));
  return text;
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "cpu";
}

std::string describe_model(const TrainConfig& config, const RankPlan& ranks) {
  const ModelConfig& model = config.model;
  return model.architecture + " of dim " + std::to_string(model.dim) + ", " +
         std::to_string(model.num_layers) + " layers, " + std::to_string(model.num_heads) + " / " +
         std::to_string(model.num_kv_heads) + " heads, ffn_dim " + std::to_string(model.ffn_dim) +
         ", vocabulary " + std::to_string(model.vocab_size) + "; " +
         std::to_string(ranks.global_batch_size) + " x " + std::to_string(config.training.seq_len) +
         " tokens a step";
}

bench::TimingSubject describe_subject(const BenchOptions& options, TrainConfig config) {
  complete_model(config);
  const RankPlan ranks = plan_ranks(config, 1);
  const plan::Hardware hardware = run_hardware(config, 1);
  const int64_t threads = config.training.num_threads;
  return {.date = today(),
          .machine = hardware.is_cpu() ? processor_name() : hardware.name,
          .threads = threads > 0 ? threads : std::max(1U, std::thread::hardware_concurrency()),
          .model = describe_model(config, ranks),
          .tokens_per_step = ranks.global_batch_size * config.training.seq_len,
          .steps = options.steps,
          .warmup = options.warmup};
}

bool has_content(const fs::path& file) {
  std::error_code error;
  return fs::file_size(file, error) > 0 && !error;
}

// Waits for the end; returns when the first step was logged, in seconds since `started`.
double wait_for(TrainingProcess& process, double started, const std::string& mode,
                const StopSignal& stop_signal) {
  double first_step = 0;
  for (;;) {
    if (first_step == 0 && has_content(process.metrics_file())) {
      first_step = now_seconds() - started;
    }
    if (const auto code = process.exit_code()) {
      if (*code != kExitDone) {
        throw std::runtime_error("mode " + mode + ": train ended with " +
                                 process.describe_failure(*code));
      }
      return first_step;
    }
    if (const auto signal = stop_signal.received()) {
      throw std::runtime_error("stopped by " + *signal + "; nothing is kept");
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

// The table of where time goes, of one process. profiling.* of the configuration does not count.
std::string profile_run(const BenchOptions& options, const std::string& mode,
                        const fs::path& folder, const StopSignal& stop_signal) {
  const std::string last = std::to_string(options.warmup + options.steps);
  std::vector<std::string> overrides = run_overrides(options, mode);
  for (const std::string& override :
       {std::string("profiling.enable_profiling=true"), "profiling.profile_freq=" + last,
        "profiling.profiler_warmup=" + std::to_string(options.warmup),
        "profiling.profiler_active=" + std::to_string(options.steps),
        std::string("profiling.save_traces_folder=profile")}) {
    overrides.push_back(override);
  }
  TrainingProcess process(options.config_path, overrides, folder);
  wait_for(process, now_seconds(), mode, stop_signal);
  for (const char* const table : {"rank0_operators.txt", "rank0_kernels.txt"}) {
    const fs::path path = folder / "profile" / ("iteration_" + last) / table;
    if (fs::exists(path)) {
      return checkpoint::read_file(path);
    }
  }
  throw std::runtime_error("mode " + mode + ": expected a profile, got none; is the disk of " +
                           folder.string() + " full?");
}

void profile_modes(const BenchOptions& options, const std::vector<std::string>& modes) {
  const StopSignal stop_signal;
  const TemporaryFolder folder;
  for (const std::string& mode : modes) {
    std::fprintf(stderr, "profiling %s\n", mode.c_str());
    const std::string table = profile_run(options, mode, folder.path() / mode, stop_signal);
    std::cout << (mode == modes.front() ? "" : "\n") << mode << ": " << table << std::flush;
  }
}

bench::TimedRun time_run(const BenchOptions& options, const std::string& mode,
                         const fs::path& folder, const StopSignal& stop_signal) {
  bench::TimedRun run;
  const double started = now_seconds();
  TrainingProcess process(options.config_path, run_overrides(options, mode), folder);
  run.first_step_seconds = wait_for(process, started, mode, stop_signal);
  report::visit_metrics(
      process.metrics_file(), [&](int64_t, int64_t step, const std::string& metric, double value) {
        if (metric == "step_seconds" && step > options.warmup) {
          run.step_seconds.push_back(value);
        } else if (metric == "peak_memory_bytes") {
          run.peak_memory_bytes = std::max(run.peak_memory_bytes, static_cast<int64_t>(value));
        }
      });
  if (run.step_seconds.empty()) {
    throw std::runtime_error("mode " + mode + ": expected " + std::to_string(options.steps) +
                             " steps in its log, got none; is the disk of " + folder.string() +
                             " full?");
  }
  return run;
}

std::vector<bench::ModeTiming> time_modes(const BenchOptions& options,
                                          const std::vector<std::string>& modes) {
  const StopSignal stop_signal;
  const TemporaryFolder folder;
  std::vector<bench::ModeTiming> timings;
  for (const std::string& mode : modes) {
    timings.push_back({mode, {}});
  }
  for (int64_t round = 1; round <= options.rounds; ++round) {
    for (bench::ModeTiming& timing : timings) {
      const fs::path run = folder.path() / "run";
      timing.rounds.push_back(time_run(options, timing.mode, run, stop_signal));
      fs::remove_all(run);
      std::fprintf(stderr, "round %ld/%ld  %-28s %9.1f ms a step\n", round, options.rounds,
                   timing.mode.c_str(),
                   1e3 * bench::quantile(timing.rounds.back().step_seconds, 0.5));
    }
  }
  return timings;
}

std::vector<std::string> chosen_modes(const BenchOptions& options, const TrainConfig& config) {
  if (!options.modes.empty()) {
    return options.modes;
  }
  const std::string configured = configured_mode(config);
  if (options.profile) {
    return {configured};
  }
  return configured == "bf16" ? std::vector{configured}
                              : std::vector{std::string("bf16"), configured};
}

}  // namespace

int bench_command(const BenchOptions& options) {
  const TrainConfig config = read_config(options.config_path, options.overrides);
  const std::vector<std::string> modes = chosen_modes(options, config);
  for (const std::string& mode : modes) {
    config_of(options, mode);
  }
  if (options.profile) {
    profile_modes(options, modes);
    return kExitDone;
  }
  std::optional<bench::EarlierTiming> earlier;
  if (!options.compare.empty()) {
    earlier = bench::earlier_timing(checkpoint::read_file(options.compare), options.compare);
  }
  const bench::TimingSubject subject = describe_subject(options, config);
  const std::vector<bench::ModeTiming> timings = time_modes(options, modes);
  std::cout << bench::to_text(subject, timings);
  if (!options.json.empty()) {
    checkpoint::write_durable_file(options.json, bench::to_json(subject, timings));
  }
  if (!earlier) {
    return kExitDone;
  }
  const bench::TimingComparison comparison =
      bench::compare(subject, timings, *earlier, options.fail_below);
  std::cout << "\n" << comparison.text;
  for (const std::string& warning : comparison.warnings) {
    std::cerr << options.compare << ": " << warning << "\n";
  }
  for (const std::string& mode : comparison.slower) {
    std::cerr << mode << " is slower than " << options.fail_below << " times the speed in "
              << options.compare << "\n";
  }
  return comparison.slower.empty() ? kExitDone : kExitFailure;
}

}  // namespace narrowgauge::trainer
