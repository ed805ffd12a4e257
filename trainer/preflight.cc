#include "trainer/preflight.h"

#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>

#include "data/source_files.h"
#include "plan/memory_model.h"
#include "plan/model_size.h"
#include "plan/run_plan.h"
#include "trainer/config_check.h"
#include "trainer/planned_run.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

constexpr double kGiB = 1 << 30;

std::string gib(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", bytes / kGiB);
  return text;
}

PreflightCheck check_data(const TrainConfig& config) {
  if (config.data.train == std::vector<std::string>{kRandomTokens}) {
    return {"data", true, kRandomTokens};
  }
  std::vector<std::string> files = data::expand_paths(config.data.train);
  if (!config.data.validation.empty()) {
    const auto held_out = data::expand_paths(config.data.validation);
    files.insert(files.end(), held_out.begin(), held_out.end());
  }
  uint64_t bytes = 0;
  for (const std::string& file : files) {
    bytes += data::describe_file(file).size_bytes;
  }
  return {"data", bytes > 0,
          std::to_string(files.size()) + " files, " + std::to_string(bytes) + " bytes"};
}

PreflightCheck check_memory(const plan::RunPlan& plan) {
  const double needed = plan.memory.peak.total();
  if (plan.available_bytes == 0) {
    return {"memory", true, gib(needed) + " a rank; memory of " + plan.hardware.name + " unknown"};
  }
  // Ranks of one processor share its memory.
  const auto ranks = static_cast<double>(plan.hardware.is_cpu() ? plan.spec.world_size() : 1);
  const bool fits = needed * ranks <= plan.available_bytes;
  return {"memory", fits,
          gib(needed * ranks) + " of " + gib(plan.available_bytes) + " on " + plan.hardware.name +
              (fits ? "" : "; `narrowgauge plan` tells what fits")};
}

PreflightCheck check_gpus(const plan::Hardware& hardware, int64_t num_ranks) {
  if (hardware.is_cpu()) {
    return {"ranks", true, std::to_string(num_ranks) + " on the processor"};
  }
  int64_t num_gpus = 0;
  std::error_code error;
  for (const auto& gpu : fs::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    num_gpus += gpu.exists() ? 1 : 0;
  }
  return {"ranks", num_ranks <= num_gpus,
          std::to_string(num_ranks) + " on " + std::to_string(num_gpus) + " x " + hardware.name +
              (num_ranks <= num_gpus ? "" : "; start one rank for each GPU")};
}

// Parameters and optimizer states of every checkpoint that is kept and of the one being written,
// and the exported model.
PreflightCheck check_disk(const TrainConfig& config) {
  const auto numel = static_cast<double>(plan::model_numel(config.model));
  const int64_t kept = config.checkpoint.keep_latest_k > 0
                           ? config.checkpoint.keep_latest_k + 1
                           : config.training.steps / config.checkpoint.interval + 1;
  double needed = 0;
  if (config.checkpoint.enable) {
    needed += static_cast<double>(kept) * numel *
              (4 + plan::optimizer_state_bytes(config.optimizer.name));
  }
  if (config.export_.enable) {
    needed += numel * (config.export_.dtype == "float32" ? 4 : 2);
  }
  fs::path folder = fs::absolute(config.job.run_dir);
  while (!fs::exists(folder) && folder.has_parent_path() && folder != folder.parent_path()) {
    folder = folder.parent_path();
  }
  const auto free = static_cast<double>(fs::space(folder).available);
  return {"disk", needed <= free,
          gib(needed) + " of " + gib(free) + " free in " + folder.string() +
              (needed <= free ? "" : "; lower checkpoint.keep_latest_k or move job.run_dir")};
}

}  // namespace

std::vector<PreflightCheck> preflight(TrainConfig config, int64_t num_ranks) {
  std::vector<PreflightCheck> checks;
  const auto look = [&](const char* name, const std::function<PreflightCheck()>& body) {
    try {
      checks.push_back(body());
    } catch (const std::exception& error) {
      checks.push_back({name, false, error.what()});
    }
    return checks.back().is_met;
  };
  look("data", [&] { return check_data(config); });
  const bool has_model = look("model", [&]() -> PreflightCheck {
    complete_model(config);
    return {"model", true, std::to_string(plan::model_numel(config.model)) + " parameters"};
  });
  if (!has_model) {
    return checks;  // the others need its sizes
  }
  const plan::Hardware hardware = run_hardware(config, num_ranks);
  look("ranks", [&] { return check_gpus(hardware, num_ranks); });
  look("memory", [&] {
    const RankPlan ranks = plan_ranks(config, num_ranks);
    return check_memory(plan::plan_run(training_spec(config, ranks), hardware, {}));
  });
  look("disk", [&] { return check_disk(config); });
  return checks;
}

}  // namespace narrowgauge::trainer
