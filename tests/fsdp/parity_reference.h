#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "fsdp/fully_shard.h"
#include "tests/fsdp/toy_model.h"

// Parity of sharded training with one process that computes each rank's slice in turn and sums the
// gradients in rank order in fp32: the same arithmetic, so every bit must agree.

namespace narrowgauge::fsdp {

struct TrainingCase {
  std::string name = "";
  int replicate = 1;
  int shard = 1;
  std::optional<ReshardAfterForward> reshard_after_forward = std::nullopt;
  at::ScalarType param_dtype = at::kFloat;
  bool tied = false;
  int num_micro_batches = 1;
  double divide_factor = 1.0;
  bool offload = false;
  bool inline_streams = false;  // instead of a thread
};

constexpr int64_t kParityBatch = 12;
constexpr double kParityLearningRate = 3e-2;

FullyShardOptions options_of(const TrainingCase& training);

// What both sides report of one step.
struct StepRecord {
  std::vector<float> losses;  // of each rank, its last micro-batch
};

// One process with fp32 master weights.
class ParityReference {
 public:
  explicit ParityReference(const TrainingCase& training);
  StepRecord step(int64_t step);
  const std::map<std::string, at::Tensor>& masters() const { return masters_; }

 private:
  std::map<std::string, at::Tensor> unique_parameters(const ToyModel& model) const;
  std::vector<at::Tensor> leaves() const;
  std::map<std::string, at::Tensor> gradients_of_rank(int64_t step, int rank, StepRecord& record);

  TrainingCase training_;
  ToySpec spec_;
  std::map<std::string, at::Tensor> masters_;
  std::shared_ptr<ToyModel> model_;
  ToyAdam adam_;
};

// One rank's step; returns the loss of its last micro-batch.
float train_step(ToyModel& model, ToyAdam& adam, const TrainingCase& training, int64_t step,
                 comm::Communicator& world);

// Trains `world`'s rank for all steps of `expected` and fails the running test where a loss or, at
// the end, a parameter is not the reference's to the bit. prepare: called with the sharded model.
void expect_parity(const TrainingCase& training, const std::shared_ptr<comm::Communicator>& world,
                   const std::vector<StepRecord>& expected, const ParityReference& reference,
                   const std::function<void(ToyModel&)>& prepare = nullptr);

}  // namespace narrowgauge::fsdp
