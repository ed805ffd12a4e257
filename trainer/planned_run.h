#pragma once

#include <cstdint>

#include "plan/run_plan.h"
#include "plan/training_spec.h"
#include "trainer/config.h"
#include "trainer/config_check.h"

namespace narrowgauge::trainer {

// What plan/ needs to know of a run, and the hardware that a run would use.

// REQUIRES: the model's shape is complete.
plan::TrainingSpec training_spec(const TrainConfig& config, const RankPlan& ranks);

// Fills in what a run would find out when it starts: the shape from model.initial_load_path and the
// vocabulary from the tokenizer. Reads small files only. Throws ConfigError where neither says.
void complete_model(TrainConfig& config);

// Where training.device puts a run here: the GPU of this machine, or the processor with
// training.num_threads threads a rank (0: a share of the cores for each of `num_ranks`).
plan::Hardware run_hardware(const TrainConfig& config, int64_t num_ranks);

}  // namespace narrowgauge::trainer
