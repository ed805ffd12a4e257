#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// Ranks are threads of one process that read each other's tensors.
//
// Ranks that disagree on the operation, dtype or count all get a c10::Error that names both.
class ThreadCommunicator final : public Communicator {
 public:
  struct Group;

  // One communicator a rank, in rank order. REQUIRES: size >= 1.
  static std::vector<std::shared_ptr<ThreadCommunicator>> create(int size);

  ThreadCommunicator(std::shared_ptr<Group> group, int rank);

  int rank() const override { return rank_; }
  int size() const override;
  void all_gather(const at::Tensor& output, const at::Tensor& input) override;
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp op) override;
  void all_reduce(const at::Tensor& tensor, ReduceOp op) override;
  void broadcast(const at::Tensor& tensor, int root) override;
  std::shared_ptr<Communicator> split(int color, int key) override;

  // Makes every collective of this communicator, of those split from it and of the one it was split
  // from throw CommunicatorAborted(cause), now and for ever. The first cause stays. Safe from any
  // thread.
  void abort(const std::string& cause);

 private:
  std::shared_ptr<Group> group_;
  int rank_;
};

}  // namespace narrowgauge::comm
