#pragma once

#include <cstdint>

#include "comm/device_mesh.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// Finds silent corruption: state that ought to have the same bits on several ranks and has not. A
// hash of each tensor travels, 8 bytes, not the tensor.
class ReplicaCheck {
 public:
  // interval: steps between checks; 0: never. Keeps a copy of `mesh`.
  ReplicaCheck(const comm::DeviceMesh& mesh, int64_t interval);

  // of_shard: equal on the ranks that hold the same shard. of_run: equal on all ranks. The same
  // names in the same order on every rank; any device. Collective: one all_gather. Throws
  // std::runtime_error, the same on every rank, that names tensors and ranks; a rank alone against
  // a majority is the one to suspect.
  void check(int64_t step, const NamedBuffers& of_shard, const NamedBuffers& of_run);
  bool is_due(int64_t step) const {
    return mesh_.world().size() > 1 && interval_ > 0 && step % interval_ == 0;
  }

 private:
  comm::DeviceMesh mesh_;
  int64_t interval_;
  int64_t last_step_ = -1;  // the last check that found nothing
};

}  // namespace narrowgauge::trainer
