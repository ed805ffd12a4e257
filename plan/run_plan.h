#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plan/communication_model.h"
#include "plan/compute_model.h"
#include "plan/efficiency.h"
#include "plan/hardware.h"
#include "plan/memory_model.h"
#include "plan/training_spec.h"

namespace narrowgauge::plan {

struct StepTime {
  ComputeTime compute;
  CommunicationTime communication;
  double exposed = 0;  // communication that nothing hides
  double seconds = 0;  // of the step

  double tokens_per_second = 0;        // of the world
  double model_flops_utilization = 0;  // work / (time x peak of the compute dtype), without
                                       // recomputation, attention counted causally
};

// What becomes of one kind of linear layer under float8.
struct Float8Layer {
  std::string name;  // "mlp.down_proj", in every block; or "lm_head"
  int64_t in_features = 0;
  int64_t out_features = 0;
  std::string refusal;  // empty: computes in FP8
};

// Another setting of the same step.
struct Alternative {
  TrainingSpec spec;
  double peak_bytes = 0;
  std::optional<double> tokens_per_second;
};

struct RunPlan {
  TrainingSpec spec;
  Hardware hardware;
  MemoryPlan memory;
  double available_bytes = 0;    // for tensors on one accelerator; 0: unknown
  std::optional<StepTime> time;  // absent where the hardware's peak is unknown
  std::vector<Float8Layer> float8_layers;
  std::optional<Alternative> alternative;  // where the setting does not fit and another one does

  // REQUIRES: available_bytes > 0.
  bool fits() const { return memory.peak.total() <= available_bytes; }
};

// This program's efficiency on `hardware`.
const Efficiency& default_efficiency(const Hardware& hardware);

// nullopt where the peak of `hardware` is unknown.
std::optional<StepTime> plan_step(const TrainingSpec& spec, const Hardware& hardware,
                                  const Efficiency& efficiency);

// What may be changed to make a run fit.
struct Freedom {
  bool recompute = true;  // activation_checkpoint.mode
  bool world_size = true;
};

// Where the setting does not fit, looks for the fastest one that does and takes the same number of
// tokens a step (with a larger world: at least that many): smaller passes with more accumulation,
// recomputation, sharding instead of replication; on as many ranks, then on twice as many, and so
// on to 4,096.
RunPlan plan_run(const TrainingSpec& spec, const Hardware& hardware, const Freedom& freedom);

}  // namespace narrowgauge::plan
