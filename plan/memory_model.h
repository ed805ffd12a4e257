#pragma once

#include <string>
#include <vector>

#include "plan/hardware.h"
#include "plan/live_bytes.h"
#include "plan/training_spec.h"

// Memory of one rank over a step, counted by walking through it as fsdp/, nn/ and the autograd
// engine do: forward block by block, backward in reverse, optimizer. What is taken and freed where
// is written at each line of memory_model.cc.

namespace narrowgauge::plan {

struct MemoryPlan {
  Bytes peak;                                // at the fullest moment
  std::string moment;                        // "backward of the head"
  std::vector<double> activations_of_block;  // kept between forward and backward
};

// Of the second step or a later one: optimizer states exist. On "cpu" the peak includes the process
// itself, so that it is what the kernel reports as resident; on a GPU what the allocator hands out.
MemoryPlan plan_memory(const TrainingSpec& spec, const Hardware& hardware);

// Bytes an element of a parameter that the optimizer keeps: moments, and their scales for blocks of
// elements. optimizer.name as in the configuration.
double optimizer_state_bytes(const std::string& optimizer);

// Bytes that one rank's optimizer step reads and writes, the refresh of compute copies included.
double optimizer_traffic_bytes(const TrainingSpec& spec);

// Memory of a GPU that is not for tensors: the CUDA context, cuBLAS's and NCCL's buffers, what the
// allocator loses to fragments. 0 on a CPU.
double reserved_bytes(const Hardware& hardware);

}  // namespace narrowgauge::plan
