#pragma once

#include <memory>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// Ranks that exchange tensors of the CPU over one communicator and tensors of a device over
// another, as torch's backend "cpu:gloo,cuda:nccl" does. So what hosts agree on (numbers of tokens,
// stop signals, texts) neither travels through the device nor waits for it, and offloaded
// parameters meet where they are.
//
// Each of the two has its own order of collectives and serves one thread at a time.
class PerDeviceCommunicator final : public Communicator {
 public:
  // REQUIRES: both have the same ranks in the same order. Throws c10::Error where they show that
  // they have not.
  PerDeviceCommunicator(std::shared_ptr<Communicator> cpu, std::shared_ptr<Communicator> device);

  int rank() const override { return cpu_->rank(); }
  int size() const override { return cpu_->size(); }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override;
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp op) override;
  void all_reduce(const at::Tensor& tensor, ReduceOp op) override;
  void broadcast(const at::Tensor& tensor, int root) override;
  std::shared_ptr<Communicator> split(int color, int key) override;

 private:
  // Of several tensors, any one decides: the communicator refuses those from elsewhere.
  Communicator& serving(const at::Tensor& tensor) const;

  std::shared_ptr<Communicator> cpu_;
  std::shared_ptr<Communicator> device_;
};

}  // namespace narrowgauge::comm
