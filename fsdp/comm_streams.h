#pragma once

#include <memory>

#include "comm/stream.h"

namespace narrowgauge::fsdp {

// Where the collectives of one root run. All groups below a root share them, so that one group's
// all-gather runs while another computes.
//
// Roles may share a stream. Collectives of roles that share a communicator must: on the CPU all
// four are one thread, so that their order, which is that of the calls, is the same on every rank.
struct CommStreams {
  std::shared_ptr<comm::Stream> all_gather_copy_in;
  std::shared_ptr<comm::Stream> all_gather;
  std::shared_ptr<comm::Stream> reduce_scatter;
  std::shared_ptr<comm::Stream> all_reduce;
  // False: nothing runs beside the caller, so forward does not prefetch unless told to.
  bool asynchronous = false;

  // Waits for all that was handed over.
  void drain() const {
    for (const auto& stream : {all_gather_copy_in, all_gather, reduce_scatter, all_reduce}) {
      stream->run([] {})->wait();
    }
  }

  // One stream for all roles.
  static CommStreams shared(std::shared_ptr<comm::Stream> stream, bool asynchronous) {
    return {stream, stream, stream, stream, asynchronous};
  }
  // Everything runs in the caller.
  static CommStreams inline_streams() {
    return shared(std::make_shared<comm::InlineStream>(), false);
  }
  // A thread of its own.
  static CommStreams thread_stream() {
    return shared(std::make_shared<comm::ThreadStream>(), true);
  }
};

}  // namespace narrowgauge::fsdp
