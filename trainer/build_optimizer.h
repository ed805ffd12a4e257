#pragma once

#include <memory>
#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/fully_shard.h"
#include "nn/layer.h"
#include "optim/lr_scheduler.h"
#include "optim/optimizer.h"
#include "trainer/config.h"

namespace narrowgauge::trainer {

// The optimizer that section `optimizer` describes, over this rank's shards. Weight decay leaves
// out norms, biases and embeddings unless optimizer.decay_norms_and_embeddings is set. Collective
// over the mesh, which outlives the optimizer. With optimizer.early_step_in_backward the backward
// of `model`, whose parameters these are, calls it. Throws ConfigError if a rule of
// optimizer.parameter_groups matches no parameter.
std::unique_ptr<optim::Optimizer> build_optimizer(
    const TrainConfig& config, nn::Layer& model,
    const std::vector<fsdp::ShardedParameter>& parameters, const comm::DeviceMesh& mesh);

// Section `lr_scheduler` over training.steps.
optim::LrScheduler build_lr_scheduler(const TrainConfig& config);

}  // namespace narrowgauge::trainer
