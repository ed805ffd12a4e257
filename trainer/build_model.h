#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "comm/device_mesh.h"
#include "nn/transformer.h"
#include "trainer/config.h"

namespace narrowgauge::trainer {

// Where the values of a model's parameters come from: initial values, or a checkpoint that is
// loaded next, so that making any would be wasted.
enum class InitialValues { kFresh, kFromCheckpoint };

// The model of a run, sharded over `mesh` on `device`: built on the meta device, wrapped, then
// filled shard by shard with initial values (from training.seed and each parameter's name) or,
// where model.initial_load_path is set, from that Hugging Face directory. config.model must be
// complete (vocab_size known). This is the one place where the model meets what it is trained with.
std::shared_ptr<nn::Transformer> build_model(const TrainConfig& config,
                                             const comm::DeviceMesh& mesh, at::Device device,
                                             InitialValues values);

}  // namespace narrowgauge::trainer
