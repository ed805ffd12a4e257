#pragma once

#include <memory>

#include "comm/device_mesh.h"
#include "nn/transformer.h"
#include "trainer/config.h"

namespace narrowgauge::trainer {

// With distillation.weight above 0, gives `model` a training loss that compares it with its
// teacher: the model of model.initial_load_path as it is stored, in the dtype of compute, without
// conversions or gradients, sharded over `mesh` as `model` is. Its values are read from that
// directory again whenever a run begins or goes on; no checkpoint holds them. Forwards without
// gradients (validation) keep the cross entropy.
//
// Returns the teacher, which runs inside the model's forward and so must share its streams (see
// fsdp::set_streams); null without distillation. Throws std::runtime_error for a directory that can
// not be read.
std::shared_ptr<nn::Transformer> distill(const TrainConfig& config, const comm::DeviceMesh& mesh,
                                         at::Device device, nn::Transformer& model);

}  // namespace narrowgauge::trainer
