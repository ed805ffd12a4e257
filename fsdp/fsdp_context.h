#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "fsdp/comm_context.h"

namespace narrowgauge::fsdp {

class FSDPState;

// What the states below one root share. Made by the root's first forward.
class FSDPContext {
 public:
  // post_order: the states in model order, the root last. pre_order: the root first, each layer
  // before those below it.
  FSDPContext(std::vector<FSDPState*> post_order, std::vector<FSDPState*> pre_order);

  // The root last: the order of late gradients is part of the order of collectives. Not owned: the
  // layers own them, and every state owns this.
  const std::vector<FSDPState*>& states() const { return states_; }
  FSDPCommContext& comm() { return *comm_; }

  // A forward begins at `state`, of the root or of a layer alone; what runs until the matching
  // end_forward belongs to it.
  void begin_forward(FSDPState* state);
  void end_forward(FSDPState* state);
  bool in_forward() const { return forward_root_ != nullptr; }
  // The forward under way has gradients: backward may come, also for layers that run without them,
  // to be recomputed.
  bool trains() const { return trains_; }
  // The state whose turn comes after `state` if this forward goes as the last one did, or, the
  // first time, in model order; null at the end. Call it once for each state that runs.
  FSDPState* next_in_forward(FSDPState* state);

  // Makes the end of the running backward finish it for all states. REQUIRES: inside backward.
  void queue_final_callback(const std::shared_ptr<FSDPContext>& self);
  bool final_callback_queued() const { return final_callback_queued_; }
  void set_is_last_backward(bool enabled) { is_last_backward_ = enabled; }

  // Drops what an exception in forward or backward left behind.
  void reset();

  // The communicator of the n neighbours of this rank on shard_axis. Collective over shard_axis the
  // first time.
  std::shared_ptr<comm::Communicator> neighbours(comm::Communicator& shard_axis, int n);

  // While positive, forward does not reshard. See GatheredParameters.
  int gathered_scopes = 0;

 private:
  void wait_for_all_gathers();
  void finish_backward();

  std::vector<FSDPState*> states_;
  std::shared_ptr<FSDPCommContext> comm_ = std::make_shared<FSDPCommContext>();
  std::map<std::pair<comm::Communicator*, int>, std::shared_ptr<comm::Communicator>> neighbours_;
  bool split_neighbours_ = false;

  FSDPState* root_;
  FSDPState* forward_root_ = nullptr;  // of the forward under way
  bool trains_ = false;
  std::vector<FSDPState*> forward_order_;  // of the root's last forward, each run of each layer
  size_t forward_position_ = 0;            // in it, of the forward under way
  std::vector<FSDPState*> forward_so_far_;

  bool final_callback_queued_ = false;
  bool is_last_backward_ = true;
};

}  // namespace narrowgauge::fsdp
