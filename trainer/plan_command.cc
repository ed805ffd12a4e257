#include "trainer/plan_command.h"

#include <iostream>

#include "plan/plan_text.h"
#include "trainer/config_check.h"
#include "trainer/config_reader.h"
#include "trainer/planned_run.h"

namespace narrowgauge::trainer {
namespace {

constexpr double kTera = 1e12;
constexpr double kGiB = 1 << 30;

plan::Hardware chosen_hardware(const PlanOptions& options, const TrainConfig& config) {
  plan::Hardware hardware;
  if (options.gpu.empty() || options.gpu == "cpu") {
    TrainConfig on_cpu = config;
    on_cpu.training.device = options.gpu.empty() ? config.training.device : "cpu";
    hardware = run_hardware(on_cpu, options.gpus);
  } else {
    hardware.name = options.gpu;  // of which nothing is known unless the table has it
    hardware = plan::find_hardware(options.gpu).value_or(hardware);
  }
  if (options.peak_tflops > 0) {
    hardware.bf16_flops = options.peak_tflops * kTera;
  }
  if (options.memory_gib > 0) {
    hardware.memory_bytes = options.memory_gib * kGiB;
  }
  return hardware;
}

}  // namespace

int plan_command(const PlanOptions& options) {
  TrainConfig config = read_config(options.config_path, options.overrides);
  complete_model(config);
  const RankPlan ranks = plan_ranks(config, options.gpus * options.nodes);
  plan::Hardware hardware = chosen_hardware(options, config);
  if (options.nodes > 1 && !hardware.is_cpu()) {
    hardware.per_node = options.gpus;
  }
  const plan::RunPlan planned = plan::plan_run(training_spec(config, ranks), hardware, {});
  std::cout << (options.json ? plan::to_json(planned) + "\n" : plan::to_text(planned));
  return planned.available_bytes == 0 || planned.fits() ? kExitDone : kExitFailure;
}

}  // namespace narrowgauge::trainer
