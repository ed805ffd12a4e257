#include "trainer/build_model.h"

#include <cstdio>
#include <optional>
#include <string>

#include "checkpoint/huggingface_directory.h"
#include "fsdp/fully_shard.h"
#include "nn/activation_checkpoint.h"
#include "nn/initialize.h"
#include "optim/group_rule.h"
#include "trainer/dtype.h"

namespace narrowgauge::trainer {
namespace {

fsdp::FullyShardOptions shard_options(const TrainConfig& config) {
  fsdp::FullyShardOptions options;
  options.mp_policy.param_dtype = parse_dtype(config.training.mixed_precision_param);
  options.mp_policy.reduce_dtype = parse_dtype(config.training.mixed_precision_reduce);
  const std::string& reshard = config.parallelism.fsdp_reshard_after_forward;
  if (reshard == "always" || reshard == "never") {
    options.reshard_after_forward = reshard == "always";
  } else if (reshard != "default") {
    options.reshard_after_forward = std::stoi(reshard);
  }
  if (config.training.enable_cpu_offload) {
    options.offload_policy = fsdp::CPUOffloadPolicy{};
  }
  return options;
}

nn::ActivationCheckpoint checkpoint_options(const ActivationCheckpointConfig& config) {
  using Mode = nn::CheckpointMode;
  if (config.mode == "selective" && config.selective_ac_option != "op") {
    return {Mode::kFull, std::stoll(config.selective_ac_option)};
  }
  return {config.mode == "none"   ? Mode::kNone
          : config.mode == "full" ? Mode::kFull
                                  : Mode::kSelective};
}

fsdp::ShardInitializer initializer(const TrainConfig& config, InitialValues values, int mesh_rank) {
  if (values == InitialValues::kFromCheckpoint) {
    return [](const std::string&, const at::Tensor&, int64_t) {};
  }
  if (config.model.initial_load_path.empty()) {
    return [&config](const std::string& fqn, const at::Tensor& shard, int64_t row_begin) {
      nn::initialize_parameter(config.model, static_cast<uint64_t>(config.training.seed), fqn,
                               shard, row_begin);
    };
  }
  auto directory = std::make_shared<checkpoint::HuggingFaceDirectory>(
      checkpoint::HuggingFaceDirectory::open(config.model.initial_load_path));
  for (const std::string& name : directory->validate()) {
    if (mesh_rank == 0) {
      std::fprintf(stderr, "%s: tensor %s is not part of the model and is left out\n",
                   config.model.initial_load_path.c_str(), name.c_str());
    }
  }
  return [directory](const std::string& fqn, const at::Tensor& shard, int64_t row_begin) {
    shard.copy_(directory->rows(fqn, row_begin, row_begin + shard.size(0)));
  };
}

// Sharding keeps whether a parameter requires a gradient.
void freeze(nn::Transformer& model, const TrainConfig& config) {
  std::vector<optim::GroupRule> rules;
  for (const std::string& text : config.optimizer.parameter_groups) {
    rules.push_back(optim::parse_group_rule(text));
  }
  for (const auto& parameter : model.named_parameters()) {
    const optim::GroupRule* rule = optim::find_rule(rules, parameter.key());
    if (rule != nullptr && rule->frozen) {
      parameter.value().set_requires_grad(false);
    }
  }
}

}  // namespace

std::shared_ptr<nn::Transformer> build_model(const TrainConfig& config,
                                             const comm::DeviceMesh& mesh, at::Device device,
                                             InitialValues values) {
  auto model = std::make_shared<nn::Transformer>(
      config.model,
      at::TensorOptions().device(at::kMeta).dtype(parse_dtype(config.training.dtype)));
  freeze(*model, config);
  nn::apply_activation_checkpoint(*model, checkpoint_options(config.activation_checkpoint));
  const fsdp::FullyShardOptions options = shard_options(config);
  for (const auto& block : model->layers) {
    fsdp::fully_shard(*block, mesh, options);
  }
  fsdp::fully_shard(*model, mesh, options);
  fsdp::materialize(*model, device, initializer(config, values, mesh.world().rank()));
  return model;
}

}  // namespace narrowgauge::trainer
