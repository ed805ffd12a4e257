#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "comm/device_mesh.h"
#include "lora/adapters.h"
#include "nn/transformer.h"
#include "qat/prepared_layer.h"
#include "trainer/config.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// Where the values of a model's parameters come from: initial values, or a checkpoint that is
// loaded next, so that making any would be wasted.
enum class InitialValues { kFresh, kFromCheckpoint };

struct BuiltModel {
  std::shared_ptr<nn::Transformer> model;
  std::vector<std::unique_ptr<StepAction>> actions;  // of its conversions; the loop runs them
  std::vector<qat::PreparedLayer> prepared;          // what qat fake-quantizes
  lora::Adapted adapted;                             // what lora trains
  std::shared_ptr<nn::Transformer> teacher;          // see distillation.h; null without one
};

// The model of a run, converted (float8, qat, lora), sharded over `mesh` on `device`: built on the
// meta device, wrapped, then filled shard by shard with initial values (from training.seed and each
// parameter's name) or, where model.initial_load_path is set, from that Hugging Face directory.
// config.model must be complete (vocab_size known); the first rank says on standard error what was
// converted. This is the one place where the model meets what it is trained with.
BuiltModel build_model(const TrainConfig& config, const comm::DeviceMesh& mesh, at::Device device,
                       InitialValues values);

}  // namespace narrowgauge::trainer
