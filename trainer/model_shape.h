#pragma once

#include "trainer/config.h"
#include "trainer/run_directory.h"

namespace narrowgauge::trainer {

// Takes the shape from the model that the run begins with, where model.initial_load_path is set:
// from the run's own copy of its config.json, or in a new run from that directory. Throws
// std::runtime_error if it cannot be read or describes a model that is not supported.
void fill_model_shape(ModelConfig& model, const RunDirectory& run);

}  // namespace narrowgauge::trainer
