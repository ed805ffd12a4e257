#include "trainer/build_model.h"

#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "checkpoint/huggingface_directory.h"
#include "float8/fsdp_extension.h"
#include "fsdp/fully_shard.h"
#include "lora/adapters.h"
#include "nn/activation_checkpoint.h"
#include "nn/initialize.h"
#include "optim/group_rule.h"
#include "qat/fsdp_extension.h"
#include "trainer/config_check.h"
#include "trainer/distillation.h"
#include "trainer/dtype.h"
#include "trainer/float8_conversion.h"
#include "trainer/lora_conversion.h"
#include "trainer/pruned_weights.h"
#include "trainer/qat_conversion.h"
#include "trainer/sparsity_conversion.h"

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

// `options` for a layer that keeps its gathered parameters after forward, or does not, unless the
// configuration says; recomputed: backward runs its forward again. What a gather of its fp8 weights
// brings depends on both. Weights for QAT travel fake-quantized.
fsdp::FullyShardOptions with_extension(fsdp::FullyShardOptions options,
                                       const comm::DeviceMesh& mesh, bool keeps_by_default,
                                       bool recomputed) {
  const auto reshard = options.reshard_after_forward.value_or(!keeps_by_default);
  const bool* const frees = std::get_if<bool>(&reshard);
  const bool keeps = frees == nullptr || !*frees;
  const auto float8 = float8::float8_param_extension(
      options.mp_policy.param_dtype,
      {mesh.shard_axis().size(), /*kept_after_forward=*/keeps, recomputed});
  const auto qat = qat::fake_quantize_extension(options.mp_policy.param_dtype,
                                                options.offload_policy.has_value());
  options.make_extension = [float8, qat](nn::Layer& owner, const std::string& name) {
    auto extension = float8(owner, name);
    return extension ? std::move(extension) : qat(owner, name);
  };
  return options;
}

fsdp::ShardInitializer initializer(const TrainConfig& config, InitialValues values, int mesh_rank) {
  if (values == InitialValues::kFromCheckpoint) {
    return [](const std::string&, const at::Tensor&, int64_t) {};
  }
  if (config.model.initial_load_path.empty()) {
    return [&config](const std::string& fqn, const at::Tensor& shard, int64_t row_begin) {
      const auto seed = static_cast<uint64_t>(config.training.seed);
      if (lora::is_adapter(fqn)) {
        lora::initialize_adapter(seed, fqn, shard, row_begin);
      } else {
        nn::initialize_parameter(config.model, seed, fqn, shard, row_begin);
      }
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
  return [directory, &config](const std::string& fqn, const at::Tensor& shard, int64_t row_begin) {
    if (lora::is_adapter(fqn)) {
      lora::initialize_adapter(static_cast<uint64_t>(config.training.seed), fqn, shard, row_begin);
      return;
    }
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

BuiltModel build_model(const TrainConfig& config, const comm::DeviceMesh& mesh, at::Device device,
                       InitialValues values) {
  auto model = std::make_shared<nn::Transformer>(
      config.model,
      at::TensorOptions().device(at::kMeta).dtype(parse_dtype(config.training.dtype)));
  freeze(*model, config);
  const auto decisions = convert_to_float8(config.float8, *model);
  if (mesh.world().rank() == 0) {
    describe_float8(config, decisions);
  }
  const int64_t num_sparse = convert_to_sparse(config.sparsity, *model, mesh.world().rank() == 0);
  const auto prepared = prepare_qat(config, *model);
  const auto adapted = add_adapters(config, *model);
  if (mesh.world().rank() == 0) {
    describe_qat(config, prepared);
    describe_adapters(config, adapted, *model);
  }
  const auto checkpoint = checkpoint_options(config.activation_checkpoint);
  nn::apply_activation_checkpoint(*model, checkpoint);
  const bool recomputed = checkpoint.mode == nn::CheckpointMode::kFull;
  const fsdp::FullyShardOptions options = shard_options(config);
  for (const auto& block : model->layers) {
    fsdp::fully_shard(*block, mesh, with_extension(options, mesh, false, recomputed));
  }
  fsdp::fully_shard(*model, mesh, with_extension(options, mesh, /*keeps_by_default=*/true, false));
  const auto initialize = initializer(config, values, mesh.world().rank());
  fsdp::materialize(*model, device,
                    values == InitialValues::kFromCheckpoint
                        ? initialize
                        : with_learned_ranges(config, prepared, initialize));
  BuiltModel built{
      model, {}, qat::prepared_layers(*model), adapted, distill(config, mesh, device, *model)};
  if (!decisions.empty()) {
    built.actions.push_back(make_float8_action(config.float8, *model, mesh));
  }
  if (num_sparse > 0) {
    const RankPlan plan = plan_ranks(config, mesh.world().size());
    built.actions.push_back(
        make_sparsity_action(config.sparsity, *model, plan.world_size() * plan.accumulation_steps));
  }
  if (config.sparsity.kind == kPrunedWeights) {
    built.actions.push_back(make_pruned_weights_action(config.sparsity, *model, mesh));
  }
  if (!prepared.empty()) {
    built.actions.push_back(make_qat_action(config, *model));
  }
  if (config.lora.dropout > 0) {
    built.actions.push_back(make_dropout_action(config, *model));
  }
  return built;
}

}  // namespace narrowgauge::trainer
