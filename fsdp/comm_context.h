#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "fsdp/comm_streams.h"
#include "fsdp/training_event.h"

namespace narrowgauge::fsdp {

class FSDPParamGroup;

// What the groups below one root share of communication. A group has one of its own until the
// root's first forward.
struct FSDPCommContext {
  CommStreams streams = CommStreams::inline_streams();
  // Groups in the order their forwards ended, as often as they ran: backward prefetches against it.
  // Emptied at the end of backward. Groups are not owned: who owns them owns this.
  std::vector<FSDPParamGroup*> post_forward_order;
  // The reductions whose input has not been freed: those of one group, one for each dtype.
  FSDPParamGroup* reduce_scattering = nullptr;
  // Groups whose reductions are under way, oldest first, `reduce_scattering` included.
  std::deque<FSDPParamGroup*> reducing;
  EventRecorder recorder;  // may be null
};

}  // namespace narrowgauge::fsdp
