#include "trainer/convergence_command.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bench/convergence_family.h"
#include "bench/convergence_table.h"
#include "checkpoint/durable_file.h"
#include "report/page.h"
#include "report/run_log.h"
#include "trainer/config_reader.h"
#include "trainer/config_writer.h"
#include "trainer/nearest_name.h"
#include "trainer/stop_signal.h"
#include "trainer/training_process.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

constexpr auto kPollInterval = std::chrono::milliseconds(20);

// One run of the comparison.
struct Run {
  const bench::ConvergenceVariant* variant;
  int64_t seed;
  fs::path folder;
  std::vector<std::string> overrides;

  std::string name() const { return variant->name + " seed " + std::to_string(seed); }
};

struct Experiment {
  const bench::ConvergenceFamily* family;
  std::vector<const bench::ConvergenceVariant*> variants;
  int64_t steps = 0;
  fs::path output;
  std::vector<Run> runs;  // seed by seed

  const std::string& reference() const { return family->variants.front().name; }
};

std::vector<const bench::ConvergenceVariant*> chosen_variants(
    const ConvergenceOptions& options, const bench::ConvergenceFamily& family) {
  std::vector<const bench::ConvergenceVariant*> chosen;
  std::vector<std::string_view> names;
  for (const bench::ConvergenceVariant& variant : family.variants) {
    names.push_back(variant.name);
    if (options.variants.empty()) {
      chosen.push_back(&variant);
    }
  }
  for (const std::string& name : options.variants) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      const auto near = nearest_name(name, names);
      throw UsageError(
          "--variant: " + family.name + " has none called " + name +
          (near ? "; did you mean " + std::string(*near) + "?" : "; it has " + join(names)));
    }
    chosen.push_back(&family.variants[static_cast<size_t>(found - names.begin())]);
  }
  return chosen;
}

Run make_run(const ConvergenceOptions& options, const Experiment& experiment,
             const bench::ConvergenceVariant& variant, int64_t seed) {
  Run run = {
      &variant,
      seed,
      experiment.output / (bench::folder_name(variant.name) + "-seed" + std::to_string(seed)),
      {"training.seed=" + std::to_string(seed),
       "training.num_threads=" + std::to_string(options.threads)}};
  const std::vector<std::string> of_variant = bench::overrides_of(variant, experiment.steps);
  run.overrides.insert(run.overrides.end(), of_variant.begin(), of_variant.end());
  run.overrides.insert(run.overrides.end(), options.overrides.begin(), options.overrides.end());
  return run;
}

Experiment make_experiment(const ConvergenceOptions& options) {
  Experiment experiment;
  experiment.family = bench::find_convergence_family(options.family);
  if (experiment.family == nullptr) {
    std::vector<std::string_view> names;
    for (const bench::ConvergenceFamily& family : bench::convergence_families()) {
      names.push_back(family.name);
    }
    throw UsageError("unknown family " + options.family + "; there are " + join(names));
  }
  experiment.variants = chosen_variants(options, *experiment.family);
  const TrainConfig config = read_config(options.config_path, options.overrides);
  if (config.validation.interval == 0) {
    throw ConfigError(
        "validation.interval: expected a number of steps, got 0; validation losses are what is "
        "compared");
  }
  experiment.steps = config.training.steps;
  experiment.output =
      fs::absolute(options.output.empty() ? "runs/convergence_" + options.family : options.output);
  for (int64_t seed = 1; seed <= options.seeds; ++seed) {
    for (const bench::ConvergenceVariant* variant : experiment.variants) {
      experiment.runs.push_back(make_run(options, experiment, *variant, seed));
    }
  }
  return experiment;
}

// What a run was asked for, less where it is and how many threads it has: these change no loss that
// matters.
std::string requested(const ConvergenceOptions& options, const Run& run) {
  TrainConfig config = read_config(options.config_path, run.overrides);
  config.job.run_dir = ".";
  config.training.num_threads = 0;
  return to_yaml(config);
}

std::string first_new_line(const std::string& before, const std::string& now) {
  std::istringstream old_lines(before);
  std::istringstream new_lines(now);
  for (std::string a, b; std::getline(new_lines, b);) {
    if (!std::getline(old_lines, a) || a != b) {
      return b.substr(std::min(b.find_first_not_of(' '), b.size()));
    }
  }
  return "another configuration";
}

// Remembers what the run is asked for, so that its losses are never taken for those of others.
void claim_folder(const ConvergenceOptions& options, const Run& run) {
  const fs::path file = run.folder / "requested.yaml";
  const std::string now = requested(options, run);
  if (!fs::exists(file)) {
    fs::create_directories(run.folder);
    checkpoint::write_durable_file(file, now);
    return;
  }
  const std::string before = checkpoint::read_file(file);
  if (before != now) {
    throw std::runtime_error(run.folder.string() + " holds a run of other settings (now \"" +
                             first_new_line(before, now) +
                             "\"); choose another --output, or delete it");
  }
}

bench::LossCurve read_curve(const fs::path& folder) {
  bench::LossCurve curve;
  if (fs::exists(folder / "metrics.jsonl")) {
    report::visit_metrics(folder / "metrics.jsonl",
                          [&](int64_t, int64_t step, const std::string& metric, double value) {
                            if (metric == "validation_loss") {
                              curve[step] = value;
                            }
                          });
  }
  return curve;
}

// The last thing that a run logs is the validation of its last step.
bool is_finished(const Experiment& experiment, const Run& run) {
  return read_curve(run.folder).contains(experiment.steps);
}

struct RunUnderWay {
  const Run* run;
  std::unique_ptr<TrainingProcess> process;
};

// Runs `pending` side by side. Returns the failures; a signal ends it early.
std::vector<std::string> train_all(const ConvergenceOptions& options,
                                   std::vector<const Run*> pending, const StopSignal& stop_signal) {
  std::vector<std::string> failures;
  std::vector<RunUnderWay> under_way;
  size_t next = 0;
  bool stopped = false;
  while (!under_way.empty() || (next < pending.size() && !stopped)) {
    while (!stopped && next < pending.size() &&
           under_way.size() < static_cast<size_t>(options.jobs)) {
      const Run& run = *pending[next++];
      under_way.push_back({&run, std::make_unique<TrainingProcess>(options.config_path,
                                                                   run.overrides, run.folder)});
    }
    for (auto at = under_way.begin(); at != under_way.end();) {
      const auto code = at->process->exit_code();
      if (!code) {
        ++at;
        continue;
      }
      std::fprintf(stderr, "%s: %s\n", at->run->name().c_str(),
                   *code == kExitDone ? "done" : at->process->describe_failure(*code).c_str());
      if (*code != kExitDone && *code != kExitStopped) {
        failures.push_back(at->run->name() + ": " + at->process->describe_failure(*code));
      }
      at = under_way.erase(at);
    }
    if (!stopped && stop_signal.received()) {
      stopped = true;
      for (const RunUnderWay& each : under_way) {
        each.process->terminate();
      }
    }
    std::this_thread::sleep_for(kPollInterval);
  }
  return failures;
}

std::vector<bench::VariantCurves> read_curves(const Experiment& experiment) {
  std::vector<bench::VariantCurves> curves;
  for (const bench::ConvergenceVariant* variant : experiment.variants) {
    bench::VariantCurves of_variant = {variant->name, {}, variant->is_to_match};
    for (const Run& run : experiment.runs) {
      if (run.variant == variant) {
        of_variant.seeds.push_back(read_curve(run.folder));
      }
    }
    curves.push_back(of_variant);
  }
  return curves;
}

// One page: the first seed of each variant, and how far its mean over seeds is from the reference.
void write_plots(const Experiment& experiment, const std::vector<bench::VariantCurves>& curves) {
  const auto reference = std::find_if(curves.begin(), curves.end(), [&](const auto& variant) {
    return variant.variant == experiment.reference();
  });
  std::vector<report::RunLog> logs;
  for (size_t i = 0; i < curves.size(); ++i) {
    const fs::path& folder = experiment.runs[i].folder;
    if (!fs::exists(folder / "metrics.jsonl")) {
      continue;
    }
    logs.push_back(report::read_run_log(folder));
    logs.back().name = curves[i].variant;
    if (reference != curves.end() && curves[i].variant != experiment.reference()) {
      report::Series series;
      for (const auto& [step, loss] : bench::difference(curves[i], *reference)) {
        series.add(step, loss);
      }
      logs.back().series["validation loss above " + experiment.reference()] = series;
    }
  }
  if (!logs.empty()) {
    checkpoint::write_durable_file(experiment.output / "report.html", report::render_page(logs));
  }
}

}  // namespace

int convergence_command(const ConvergenceOptions& options) {
  const Experiment experiment = make_experiment(options);
  if (!options.table_only) {
    std::vector<const Run*> pending;
    for (const Run& run : experiment.runs) {
      claim_folder(options, run);
      if (!is_finished(experiment, run)) {
        pending.push_back(&run);
      }
    }
    std::fprintf(stderr, "%zu of %zu runs to train, %ld steps each, in %s\n", pending.size(),
                 experiment.runs.size(), experiment.steps, experiment.output.c_str());
    const StopSignal stop_signal;
    const std::vector<std::string> failures = train_all(options, pending, stop_signal);
    if (const auto signal = stop_signal.received()) {
      std::fprintf(stderr, "stopped by %s; start again to go on\n", signal->c_str());
      return kExitStopped;
    }
    if (!failures.empty()) {
      throw std::runtime_error(std::to_string(failures.size()) +
                               " runs failed, the first: " + failures.front());
    }
  }
  const std::vector<bench::VariantCurves> curves = read_curves(experiment);
  const std::vector<bench::ConvergenceRow> rows = bench::convergence_rows(
      curves, experiment.reference(), experiment.steps, options.tolerance_percent);
  std::cout << bench::to_text(rows, experiment.reference());
  checkpoint::create_durable_directories(experiment.output);
  checkpoint::write_durable_file(
      experiment.output / "table.json",
      bench::to_json(rows, experiment.family->name, experiment.reference(), experiment.steps));
  write_plots(experiment, curves);
  bool all_match = true;
  for (const bench::ConvergenceRow& row : rows) {
    if (row.is_beyond) {
      std::cerr << row.variant << " is more than " << options.tolerance_percent << " % above "
                << experiment.reference() << "\n";
      all_match = false;
    }
  }
  return all_match ? kExitDone : kExitFailure;
}

}  // namespace narrowgauge::trainer
