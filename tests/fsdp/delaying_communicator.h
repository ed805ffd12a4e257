#pragma once

#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "comm/communicator.h"

namespace narrowgauge::fsdp {

// Before which collectives a rank sleeps, and for how long.
struct CollectiveDelays {
  std::chrono::milliseconds all_gather{0};
  std::chrono::milliseconds reduce{0};
};

// A slow network: sleeps, then hands each collective on. Communicators split from it sleep alike.
class DelayingCommunicator final : public comm::Communicator {
 public:
  DelayingCommunicator(std::shared_ptr<comm::Communicator> inner, CollectiveDelays delays)
      : inner_(std::move(inner)), delays_(delays) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override {
    std::this_thread::sleep_for(delays_.all_gather);
    inner_->all_gather(output, input);
  }
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                      comm::ReduceOp op) override {
    std::this_thread::sleep_for(delays_.reduce);
    inner_->reduce_scatter(output, input, op);
  }
  void all_reduce(const at::Tensor& tensor, comm::ReduceOp op) override {
    std::this_thread::sleep_for(delays_.reduce);
    inner_->all_reduce(tensor, op);
  }
  void broadcast(const at::Tensor& tensor, int root) override { inner_->broadcast(tensor, root); }
  std::shared_ptr<comm::Communicator> split(int color, int key) override {
    return std::make_shared<DelayingCommunicator>(inner_->split(color, key), delays_);
  }

 private:
  std::shared_ptr<comm::Communicator> inner_;
  CollectiveDelays delays_;
};

}  // namespace narrowgauge::fsdp
