#pragma once

#include <c10/core/Device.h>

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
  void drain() const;

  // One stream for all roles.
  static CommStreams shared(std::shared_ptr<comm::Stream> stream, bool asynchronous);
  // Everything runs in the caller.
  static CommStreams inline_streams();
  // A thread of its own.
  static CommStreams thread_stream();
  // Copies, the shard axis and the replicate axis each have a stream of `device`, a CUDA device.
  static CommStreams cuda_streams(const c10::Device& device);
  // What runs beside computation on `device`: a thread, or streams of the device; on a device that
  // has neither, nothing does.
  static CommStreams beside(const c10::Device& device);
};

}  // namespace narrowgauge::fsdp
