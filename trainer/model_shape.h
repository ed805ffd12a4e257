#pragma once

#include "trainer/config.h"

namespace narrowgauge::trainer {

// Takes the shape from model.initial_load_path/config.json where that is set. Throws
// std::runtime_error if it cannot be read or describes a model that is not supported.
void fill_model_shape(ModelConfig& model);

}  // namespace narrowgauge::trainer
