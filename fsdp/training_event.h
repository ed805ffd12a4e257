#pragma once

#include <functional>
#include <string>

namespace narrowgauge::fsdp {

// Where a group is in its training step.
enum class TrainingState {
  kIdle,          // outside forward and backward
  kForward,       // between pre_forward and post_forward
  kPreBackward,   // from the moment its gradients begin: a forward here is a recomputation
  kPostBackward,  // its gradients are taken, until backward ends
};

// One change of a group's parameters, as FSDP2's tests record them. Nothing is told where there was
// nothing to do, except for post_backward.
struct TrainingEvent {
  enum class Kind { kUnshard, kReshard, kPostBackward };
  Kind kind;
  std::string group;    // names of its layers from the root, the root's is empty
  TrainingState state;  // for whose sake: kPreBackward also when another group prefetches it
};

// kUnshard when the all-gather starts, kReshard when the storage is freed, kPostBackward when
// post_backward returns. Called on the thread that runs the model.
using EventRecorder = std::function<void(const TrainingEvent&)>;

}  // namespace narrowgauge::fsdp
