#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/device_mesh.h"
#include "data/data_loader.h"
#include "fsdp/fully_shard.h"
#include "nn/transformer.h"
#include "optim/lr_scheduler.h"
#include "optim/optimizer.h"
#include "trainer/config.h"
#include "trainer/config_check.h"
#include "trainer/metrics.h"
#include "trainer/run_checkpoint.h"
#include "trainer/run_directory.h"
#include "trainer/stop_signal.h"
#include "trainer/training_data.h"

namespace narrowgauge::trainer {

// One training run on one rank: the model, what updates it, what feeds it, and the loop over steps.
// Every rank of the mesh constructs one from the same configuration and calls the same methods.
class Trainer {
 public:
  // `config.model` is complete. Loads the newest checkpoint of `run` if it has one.
  Trainer(const TrainConfig& config, const RunDirectory& run, TrainingData data,
          std::shared_ptr<comm::Communicator> world, at::Device device);

  // Trains up to training.steps, with validation, samples and checkpoints as configured. Returns
  // early, with a checkpoint written, if any rank received a stop signal; then stopped_by() names
  // it.
  void train();

  std::optional<std::string> stopped_by() const { return stopped_by_; }

  // The trained model as <run>/hf, a Hugging Face directory.
  void export_huggingface();

 private:
  StepMetrics train_step(int64_t step);
  // Forward and backward over this rank's part of the global batch of `step`; gradients are left on
  // the sharded parameters. Returns this rank's sum of losses divided by the global number of valid
  // tokens.
  double accumulate_gradients(int64_t step);
  double validate(int64_t step);
  void write_sample(int64_t step);
  void save();
  // Notes the first stop signal that any rank received; the same answer on every rank.
  bool any_rank_stopped();
  // The same bits on every rank.
  double sum_over_ranks(double value);
  bool is_first_rank() const { return mesh_.world().rank() == 0; }

  const TrainConfig& config_;
  const RunDirectory& run_;
  TrainingData data_;
  at::Device device_;
  RankPlan plan_;
  comm::DeviceMesh mesh_;
  std::shared_ptr<nn::Transformer> model_;
  std::vector<fsdp::ShardedParameter> parameters_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  optim::LrScheduler scheduler_;
  data::DataLoader loader_;
  RunState state_;
  std::optional<MetricsLog> metrics_log_;  // rank 0
  std::optional<ProgressLine> progress_;   // rank 0, while training
  StopSignal stop_signal_;
  std::optional<std::string> stopped_by_;
};

}  // namespace narrowgauge::trainer
