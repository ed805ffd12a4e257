#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "comm/communicator.h"
#include "comm/device_mesh.h"
#include "fsdp/comm_streams.h"
#include "fsdp/fully_shard.h"
#include "tests/fsdp/toy_model.h"

namespace narrowgauge::fsdp {

// Rank 0 of a world whose other ranks hold and compute the same. Everything happens on the current
// stream of the tensors' device and nothing blocks, so that one process on one device runs what
// many would: for a parameter in k shards, each of which is S, the whole is S k times over, and its
// reduced gradient is the number of ranks times the first shard's.
class EchoCommunicator final : public comm::Communicator {
 public:
  // alone: a communicator of one rank, which carries what this rank sends to itself. split_size: of
  // every communicator split from this one. delay: called before each collective writes; may be
  // null.
  EchoCommunicator(std::shared_ptr<comm::Communicator> alone, int size, int split_size,
                   std::function<void()> delay)
      : alone_(std::move(alone)), size_(size), split_size_(split_size), delay_(std::move(delay)) {}

  int rank() const override { return 0; }
  int size() const override { return size_; }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override;
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                      comm::ReduceOp op) override;
  void all_reduce(const at::Tensor& tensor, comm::ReduceOp op) override;
  void broadcast(const at::Tensor& tensor, int root) override { alone_->broadcast(tensor, root); }
  std::shared_ptr<comm::Communicator> split(int, int) override {
    return std::make_shared<EchoCommunicator>(alone_->split(0, 0), split_size_, split_size_,
                                              delay_);
  }

 private:
  void wait() const;

  std::shared_ptr<comm::Communicator> alone_;
  int size_;
  int split_size_;
  std::function<void()> delay_;
};

struct EchoCase {
  const char* name = "";
  int replicate = 1;
  int shard = 2;
  std::optional<ReshardAfterForward> reshard_after_forward = std::nullopt;
  at::ScalarType param_dtype = at::kFloat;
  bool offload = false;
};

// A toy model in an echo world.
struct EchoModel {
  comm::DeviceMesh mesh;
  std::shared_ptr<ToyModel> model;
};
EchoModel make_echo_model(const EchoCase& tested, const ToySpec& spec, at::Device device,
                          const std::shared_ptr<comm::Communicator>& alone,
                          const std::function<void()>& delay);

// Trains a toy model on `device` in an echo world and without sharding, and fails the running test
// where losses or parameters of 6 steps differ. streams: unset, the default ones.
void expect_echo_parity(const EchoCase& tested, at::Device device,
                        const std::shared_ptr<comm::Communicator>& alone,
                        const std::optional<CommStreams>& streams,
                        const std::function<void()>& delay);

}  // namespace narrowgauge::fsdp
