#pragma once

#include <memory>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// The one rank of a process on its own, or of a mesh axis of size 1: a collective is a copy or
// nothing at all. Tensors may be on any device; copies are enqueued on its current stream.
class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override;
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp op) override;
  void all_reduce(const at::Tensor& tensor, ReduceOp op) override;
  void broadcast(const at::Tensor& tensor, int root) override;
  std::shared_ptr<Communicator> split(int color, int key) override;
};

}  // namespace narrowgauge::comm
