#include "trainer/build_optimizer.h"

#include <optional>
#include <utility>

#include "fsdp/fsdp_module.h"
#include "optim/adamw.h"
#include "optim/cpu_offload.h"
#include "optim/low_bit_adam.h"
#include "optim/muon.h"
#include "optim/optimizer_list.h"
#include "optim/parameter_groups.h"
#include "optim/step_in_backward.h"

namespace narrowgauge::trainer {
namespace {

using Groups = std::vector<optim::ParameterGroup>;

optim::AdamOptions adam_options(const OptimizerConfig& section) {
  return {section.beta1, section.beta2, section.eps, section.name != "Adam"};
}

optim::StateFormat state_format(const OptimizerConfig& section) {
  return section.name == "AdamW8bit"         ? optim::StateFormat::k8bit
         : section.name == "AdamW4bit"       ? optim::StateFormat::k4bit
         : section.name == "AdamWFp8"        ? optim::StateFormat::kFp8
         : section.state_dtype == "bfloat16" ? optim::StateFormat::kBFloat16
                                             : optim::StateFormat::kFloat32;
}

std::unique_ptr<optim::Optimizer> make_adam(const TrainConfig& config, Groups groups,
                                            comm::Communicator* shard_axis,
                                            std::optional<at::Device> comm_device = std::nullopt) {
  const OptimizerConfig& section = config.optimizer;
  const optim::StateFormat format = state_format(section);
  if (format == optim::StateFormat::kFloat32 && config.training.dtype == "float32") {
    return std::make_unique<optim::AdamW>(std::move(groups), adam_options(section));
  }
  const optim::LowBitAdamOptions options = {
      adam_options(section), format, section.bf16_stochastic_round,
      static_cast<uint64_t>(config.training.seed), comm_device};
  return std::make_unique<optim::LowBitAdam>(std::move(groups), options, shard_axis);
}

std::unique_ptr<optim::Optimizer> make_muon(const TrainConfig& config, Groups groups,
                                            comm::Communicator* shard_axis) {
  // One learning rate serves both, since Muon's updates get the size of AdamW's.
  const optim::MuonOptions options = {.momentum = config.optimizer.momentum,
                                      .adjust_lr = optim::AdjustLr::kMatchRmsAdamW};
  auto [hidden, rest] = optim::split_groups(std::move(groups), optim::is_hidden_matrix);
  std::vector<std::unique_ptr<optim::Optimizer>> optimizers;
  optimizers.push_back(std::make_unique<optim::Muon>(std::move(hidden), options, shard_axis));
  optimizers.push_back(make_adam(config, std::move(rest), shard_axis));
  return std::make_unique<optim::OptimizerList>(std::move(optimizers));
}

std::unique_ptr<optim::Optimizer> step_in_backward(const TrainConfig& config, nn::Layer& model,
                                                   Groups groups, comm::Communicator* shard_axis) {
  auto optimizer = std::make_unique<optim::StepInBackward>(std::move(groups), [&](Groups some) {
    return make_adam(config, std::move(some), shard_axis);
  });
  for (size_t i = 0; i < optimizer->names().size(); ++i) {
    // The model's backward runs only while the run has its optimizer.
    fsdp::set_post_accumulate_grad_hook(
        model, optimizer->names()[i],
        [raw = optimizer.get(), i](at::Tensor&) { raw->gradient_ready(i); });
  }
  return optimizer;
}

}  // namespace

std::unique_ptr<optim::Optimizer> build_optimizer(
    const TrainConfig& config, nn::Layer& model,
    const std::vector<fsdp::ShardedParameter>& parameters, const comm::DeviceMesh& mesh) {
  const OptimizerConfig& section = config.optimizer;
  optim::GroupingOptions grouping = {section.weight_decay, section.decay_norms_and_embeddings, {}};
  std::vector<optim::GroupedParameter> named;
  for (const fsdp::ShardedParameter& parameter : parameters) {
    named.push_back(
        {parameter.fqn, parameter.local, {parameter.global_sizes, parameter.row_begin}});
  }
  for (const std::string& text : section.parameter_groups) {
    grouping.rules.push_back(optim::parse_group_rule(text));
    if (!optim::matches_any(grouping.rules.back(), named)) {
      throw ConfigError(
          "optimizer.parameter_groups: expected a pattern that matches a parameter, "
          "got '" +
          grouping.rules.back().pattern + "'; names are like '" + parameters.back().fqn + "'");
    }
  }
  Groups groups = optim::group_parameters(std::move(named), grouping);
  if (groups.empty()) {
    throw ConfigError(
        "optimizer.parameter_groups: expected something left to train, got all "
        "parameters frozen");
  }
  comm::Communicator* const shard_axis = &mesh.shard_axis();
  if (section.name == "Muon") {
    return make_muon(config, std::move(groups), shard_axis);
  }
  const at::Device device = groups[0].params[0].device();
  if (section.cpu_offload && !device.is_cpu()) {
    return std::make_unique<optim::CpuOffload>(std::move(groups), [&](optim::ParameterGroup group) {
      return make_adam(config, {std::move(group)}, shard_axis, device);
    });
  }
  if (section.early_step_in_backward) {
    return step_in_backward(config, model, std::move(groups), shard_axis);
  }
  return make_adam(config, std::move(groups), shard_axis);
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
