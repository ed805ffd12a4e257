#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace narrowgauge::trainer {

// Tensors by name.
using NamedBuffers = std::vector<std::pair<std::string, at::Tensor>>;

// What an action has to say about a step, on the first rank.
struct StepReport {
  std::vector<std::string> metrics_lines;  // JSON objects with a "step", for <run>/metrics.jsonl
  std::vector<std::string> warnings;       // for people
};

// What a conversion of the model (float8, ...) does around the steps of the loop, which knows none
// of them: it runs a list of actions. Every rank has the same list; methods are collective.
class StepAction {
 public:
  virtual ~StepAction() = default;

  // Parameters and named_buffers() hold what the run goes on with: initial values or a checkpoint.
  virtual void before_training() {}
  virtual void before_step(int64_t /*step*/) {}
  // A forward and its backward follow, of samples of the global batch that begin with this one.
  virtual void before_forward(int64_t /*first_sample*/) {}
  // The gradients of the whole batch are there, their norm is not taken yet. Not with
  // optimizer.early_step_in_backward.
  virtual void after_backward() {}
  // The optimizer has applied `step`.
  virtual StepReport after_step(int64_t /*step*/) { return {}; }
  // In its place: nothing of `step` was applied, what forward and backward noted is to be dropped.
  virtual void after_skipped_step(int64_t /*step*/) {}

  // The last step is done: what is saved and exported next is the run's result.
  virtual void after_training() {}

  // What a checkpoint must hold beside parameters and optimizer, by names that no other action
  // uses: CPU tensors, equal on all ranks, that loading copies into.
  virtual NamedBuffers named_buffers() { return {}; }
};

}  // namespace narrowgauge::trainer
