#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/flight_record.h"

namespace narrowgauge::comm {

// Hands every collective on and keeps it in the flight record of this rank, as begun and as ended;
// collectives on a device have ended when the device has done what was enqueued. Communicators
// split from it write to the same record.
class WatchedCommunicator final : public Communicator {
 public:
  // `id` is equal on all ranks of `inner` and no other communicator of theirs has it.
  WatchedCommunicator(std::shared_ptr<Communicator> inner, std::shared_ptr<FlightRecord> record,
                      const std::string& id, const std::string& name);

  // How messages and records call it. A communicator from a split is called after its parent until
  // then.
  void set_name(const std::string& name);

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override;
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp op) override;
  void all_reduce(const at::Tensor& tensor, ReduceOp op) override;
  void broadcast(const at::Tensor& tensor, int root) override;
  std::shared_ptr<Communicator> split(int color, int key) override;

 private:
  template <typename Collective>
  void watch(const char* operation, const at::Tensor& larger, const Collective& collective);

  std::shared_ptr<Communicator> inner_;
  std::shared_ptr<FlightRecord> record_;
  std::string id_;
  std::string name_;
  int splits_ = 0;
};

// Names the group where it is watched, and does nothing elsewhere.
void set_group_name(Communicator& communicator, const std::string& name);

}  // namespace narrowgauge::comm
