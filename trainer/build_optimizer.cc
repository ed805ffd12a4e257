#include "trainer/build_optimizer.h"

#include <c10/util/Exception.h>

#include "optim/adamw.h"
#include "optim/parameter_groups.h"

namespace narrowgauge::trainer {

std::unique_ptr<optim::Optimizer> build_optimizer(
    const TrainConfig& config, const std::vector<fsdp::ShardedParameter>& parameters) {
  const OptimizerConfig& section = config.optimizer;
  std::vector<std::pair<std::string, at::Tensor>> named;
  named.reserve(parameters.size());
  for (const fsdp::ShardedParameter& parameter : parameters) {
    named.emplace_back(parameter.fqn, parameter.local);
  }
  std::vector<optim::ParameterGroup> groups =
      optim::default_parameter_groups(named, section.weight_decay);
  if (section.decay_norms_and_embeddings) {
    for (optim::ParameterGroup& group : groups) {
      group.weight_decay = section.weight_decay;
    }
  }
  TORCH_CHECK(section.name == "AdamW", "expected optimizer.name AdamW, got '", section.name, "'");
  return std::make_unique<optim::AdamW>(
      std::move(groups), optim::AdamWOptions{section.beta1, section.beta2, section.eps});
}

optim::LrScheduler build_lr_scheduler(const TrainConfig& config) {
  const LrSchedulerConfig& section = config.lr_scheduler;
  optim::LrSchedule schedule;
  schedule.total_steps = config.training.steps;
  schedule.warmup_steps = section.warmup_steps;
  schedule.decay_ratio = section.decay_ratio;
  schedule.decay_type = section.decay_type;
  schedule.min_lr_factor = section.min_lr_factor;
  return optim::LrScheduler(schedule);
}

}  // namespace narrowgauge::trainer
