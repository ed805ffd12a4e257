#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "comm/device_mesh.h"
#include "comm/metered_stream.h"
#include "data/data_loader.h"
#include "fsdp/fully_shard.h"
#include "nn/transformer.h"
#include "optim/lr_scheduler.h"
#include "optim/optimizer.h"
#include "report/event_file.h"
#include "trainer/build_model.h"
#include "trainer/config.h"
#include "trainer/config_check.h"
#include "trainer/json_lines.h"
#include "trainer/metrics.h"
#include "trainer/progress_line.h"
#include "trainer/replica_check.h"
#include "trainer/run_checkpoint.h"
#include "trainer/run_directory.h"
#include "trainer/run_saver.h"
#include "trainer/step_action.h"
#include "trainer/step_guard.h"
#include "trainer/step_profiler.h"
#include "trainer/stop_signal.h"
#include "trainer/training_data.h"

namespace narrowgauge::trainer {

// One training run on one rank: the model, what updates it, what feeds it, and the loop over steps.
// Every rank of the mesh constructs one from the same configuration and calls the same methods.
class Trainer {
 public:
  // Builds the run where its newest checkpoint left it, or anew. `config.model` is complete. Throws
  // ConfigError for whatever would stop the run later and can be known now.
  // after: the loss spike that this run goes back from.
  Trainer(const TrainConfig& config, const RunDirectory& run, TrainingData data,
          std::shared_ptr<comm::Communicator> world, at::Device device,
          const std::optional<LossSpike>& after = std::nullopt);

  // Trains up to training.steps, with validation, samples and checkpoints as configured; calls
  // `under_way` once a step is done. Returns early, after the step at hand, if any rank received a
  // stop signal; stopped_by() names it then. Or at a loss spike, before anything of it is applied:
  // a new Trainer goes on after it.
  void train(const StopSignal& stop_signal, const std::function<void()>& under_way);

  std::optional<std::string> stopped_by() const { return stopped_by_; }
  const std::optional<LossSpike>& spike() const { return guard_.spike(); }
  // The last step that is done.
  int64_t step() const { return state_.step; }

  // Of the newest checkpoint that this run made or began with; -1: none.
  int64_t saved_step() const { return saver_.saved_step(); }
  // Whether a checkpoint holds the step the run stands at.
  bool is_saved() const { return saved_step() == state_.step; }

  // Seconds of a step, on average over those this process trained; the first two, which warm up, do
  // not count. 0 where there were no others.
  double mean_step_seconds() const;

  // What the run leaves behind; see trained_exports.h.
  void export_model();

 private:
  StepMetrics train_step(int64_t step);
  void record(const StepMetrics& metrics);
  void go_back_from(const LossSpike& spike);
  // The loss, and the norm of the gradients.
  std::pair<double, double> measure(const at::Tensor& local_loss);
  void apply_gradients(StepGuard::Verdict verdict, double lr, double grad_norm);
  void run_actions_after(int64_t step, StepGuard::Verdict verdict);
  // On the first rank, in the log and to people.
  void tell(const StepReport& report);
  // Of the guard and all actions.
  NamedBuffers named_buffers();
  // That of the checkpoint to go on from, loaded into model, optimizer and buffers; else step 0.
  RunState begin_state();
  // What ranks hold alike, see ReplicaCheck.
  void check_replicas();
  // Forward and backward over this rank's part of the global batch of `step`; gradients are left on
  // the sharded parameters, except those that the optimizer has applied with `lr`. Returns this
  // rank's sum of losses divided by the global number of valid tokens: 0-dim fp64 on the device,
  // which may still be at work.
  at::Tensor accumulate_gradients(int64_t step, double lr);
  // The batch's sum of losses times `weight`.
  at::Tensor forward(data::Batch& batch, double weight);
  void validate();
  void write_sample();
  // Where one is due, a checkpoint; one that cannot be written costs a line, not the run.
  void save(bool is_last);
  // What stopped a rank, the same answer on every rank.
  std::optional<std::string> signal_of_any_rank(const StopSignal& stop_signal);
  // The same bits on every rank.
  double sum_over_ranks(double value);
  bool is_first_rank() const { return mesh_.world().rank() == 0; }

  const TrainConfig& config_;
  const RunDirectory& run_;
  TrainingData data_;
  at::Device device_;
  RankPlan plan_;
  comm::DeviceMesh mesh_;
  std::optional<std::filesystem::path> checkpoint_;  // where the run goes on from
  BuiltModel built_;
  const std::shared_ptr<nn::Transformer> model_;
  std::shared_ptr<comm::MeteredStream> communication_;  // the model's collectives; null: no thread
  std::vector<fsdp::ShardedParameter> parameters_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  optim::LrScheduler scheduler_;
  data::DataLoader loader_;
  std::optional<data::ValidationLoader> validation_loader_;  // if validation is on
  std::vector<int64_t> prompt_;                              // of samples; empty if they are off
  StepGuard guard_;
  ReplicaCheck replica_check_;
  RunState state_;
  StepProfiler profiler_;
  int64_t num_steps_trained_ = 0;  // by this process
  double timed_seconds_ = 0;       // of all of them but the first kWarmUpSteps
  // The first rank's alone:
  std::optional<JsonLines> metrics_log_;
  std::optional<JsonLines> samples_log_;
  std::optional<report::EventFile> events_;  // absent where it could not be made
  std::optional<ProgressLine> progress_;     // while training
  std::optional<std::string> stopped_by_;
  RunSaver saver_;  // last, so that it ends first: its thread reads the run's tensors
};

}  // namespace narrowgauge::trainer
