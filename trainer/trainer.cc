#include "trainer/trainer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "fsdp/clip_grad_norm.h"
#include "nn/sampling.h"
#include "trainer/build_optimizer.h"
#include "trainer/continuation.h"
#include "trainer/device.h"
#include "trainer/dtype.h"
#include "trainer/trained_exports.h"

namespace narrowgauge::trainer {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// [batch_size, seq_len] int64 on `device`. `tokens` may be gone afterwards. Page-locked memory lets
// the copy to a GPU queue behind the work there instead of waiting for it; libtorch keeps such
// memory until the copy is done.
at::Tensor to_tensor(std::vector<int64_t>& tokens, const data::Batch& batch, at::Device device) {
  const at::Tensor view =
      at::from_blob(tokens.data(), {batch.batch_size, batch.seq_len}, at::kLong);
  return device.is_cpu() ? view.clone() : view.pin_memory().to(device, /*non_blocking=*/true);
}

// Int32 [documents + 1] on `device`, or undefined where rows are whole.
at::Tensor cu_seqlens_of(data::Batch& batch, at::Device device) {
  if (batch.cu_seqlens.empty()) {
    return {};
  }
  const at::Tensor view = at::from_blob(batch.cu_seqlens.data(),
                                        {static_cast<int64_t>(batch.cu_seqlens.size())}, at::kInt);
  return device.is_cpu() ? view.clone() : view.pin_memory().to(device, /*non_blocking=*/true);
}

// Makes `name` visible to the profiler while it lives: "step", or a part of one (operator_table.h).
class Phase {
 public:
  explicit Phase(const char* name) : record_(at::RecordScope::FUNCTION) {
    if (record_.isActive()) {
      record_.before(name);
    }
  }

 private:
  at::RecordFunction record_;
};

constexpr int64_t kWarmUpSteps = 2;  // the first steps fill caches and make optimizer states

// A log must not end a run: what cannot be made costs a line.
void open_events(std::optional<report::EventFile>& events, const RunDirectory& run, int64_t step) {
  try {
    events.emplace(run.tensorboard(), step);
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "no events for TensorBoard: %s\n", error.what());
  }
}

bool is_due(int64_t step, int64_t interval, int64_t last_step) {
  return interval > 0 && (step % interval == 0 || step == last_step);
}

// A run with checkpoints switched off starts anew, unless it is told where to begin.
std::optional<std::filesystem::path> choose_checkpoint(const TrainConfig& config,
                                                       const RunDirectory& run,
                                                       comm::Communicator& world) {
  const int64_t load_step = config.checkpoint.load_step;
  if (config.checkpoint.enable && world.rank() == 0) {
    remove_leftovers(run.checkpoints());
  }
  return config.checkpoint.enable || load_step >= 0
             ? find_checkpoint(run.checkpoints(), load_step, world)
             : std::nullopt;
}

std::optional<data::ValidationLoader> make_validation_loader(
    const TrainConfig& config, const std::shared_ptr<data::TokenDataset>& dataset,
    int64_t global_batch_size) {
  if (config.validation.interval == 0) {
    return std::nullopt;
  }
  if (!dataset || dataset->num_tokens() < 2) {
    throw ConfigError(
        "validation.interval: expected 0, since data.validation_fraction holds no token out; raise "
        "it or name data.validation");
  }
  return data::ValidationLoader(dataset, config.training.seq_len, global_batch_size,
                                packing_of(config));
}

// A thread of its own for the model's collectives where ranks meet on the CPU, else null.
// A teacher, which runs inside the model's forward, shares it.
std::shared_ptr<comm::MeteredStream> run_collectives_beside(const BuiltModel& built,
                                                            const comm::Communicator& world,
                                                            at::Device device) {
  const auto use = [&](const fsdp::CommStreams& streams) {
    fsdp::set_streams(*built.model, streams);
    if (built.teacher) {
      fsdp::set_streams(*built.teacher, streams);
    }
  };
  if (world.size() == 1 || !device.is_cpu()) {
    if (built.teacher) {
      use(fsdp::CommStreams::beside(device));
    }
    return nullptr;
  }
  auto stream = std::make_shared<comm::MeteredStream>(std::make_shared<comm::ThreadStream>());
  use(fsdp::CommStreams::shared(stream, /*asynchronous=*/true));
  return stream;
}

// A whole model on every rank for forwards without gradients, where the configuration says that it
// fits; else null, and each of them gathers layer by layer.
std::unique_ptr<fsdp::GatheredParameters> gather_if_it_fits(nn::Transformer& model,
                                                            const TrainConfig& config) {
  return config.parallelism.fsdp_reshard_after_forward == "never"
             ? std::make_unique<fsdp::GatheredParameters>(model)
             : nullptr;
}

std::vector<int64_t> make_prompt(const TrainConfig& config, const data::Tokenizer* tokenizer) {
  if (config.generation.interval == 0) {
    return {};
  }
  std::vector<int64_t> prompt = encode_prompt(*tokenizer, config.generation.prompt);
  if (prompt.empty() || static_cast<int64_t>(prompt.size()) >= config.model.max_seq_len) {
    throw ConfigError("generation.prompt: expected 1 to " +
                      std::to_string(config.model.max_seq_len - 1) + " tokens, got " +
                      std::to_string(prompt.size()));
  }
  return prompt;
}

}  // namespace

Trainer::Trainer(const TrainConfig& config, const RunDirectory& run, TrainingData data,
                 std::shared_ptr<comm::Communicator> world, at::Device device,
                 const std::optional<LossSpike>& after)
    : config_(config),
      run_(run),
      data_(std::move(data)),
      device_(device),
      plan_(plan_ranks(config, world->size())),
      mesh_(world, static_cast<int>(plan_.replicate_degree), static_cast<int>(plan_.shard_degree)),
      checkpoint_(choose_checkpoint(config, run, *world)),
      built_(build_model(config, mesh_, device,
                         checkpoint_ ? InitialValues::kFromCheckpoint : InitialValues::kFresh)),
      model_(built_.model),
      communication_(run_collectives_beside(built_, *world, device)),
      parameters_(fsdp::sharded_parameters(*model_)),
      optimizer_(build_optimizer(config, *model_, parameters_, mesh_)),
      scheduler_(build_lr_scheduler(config)),
      loader_(make_training_loader(config, data_.split, plan_.global_batch_size)),
      validation_loader_(
          make_validation_loader(config, data_.split.validation, plan_.global_batch_size)),
      prompt_(make_prompt(config, data_.tokenizer.get())),
      guard_(config),
      replica_check_(mesh_, config.training.check_weight_hash_interval),
      state_(begin_state()),
      profiler_(config.profiling, run.path(), mesh_.world().rank(), device),
      saver_(config.checkpoint, run.checkpoints(), mesh_.world(), checkpoint_ ? state_.step : -1,
             [this] {
               return snapshot_run(state_, config_, parameters_, *optimizer_, named_buffers());
             }) {
  for (const auto& action : built_.actions) {
    action->before_training();
  }
  if (is_first_rank()) {
    metrics_log_.emplace(run.metrics_file(), state_.step);
    samples_log_.emplace(run.samples_file(), state_.step);
    open_events(events_, run, state_.step);
  }
  if (after) {
    go_back_from(*after);
  }
}

void Trainer::go_back_from(const LossSpike& spike) {
  guard_.go_on_with_batch(spike.next_batch, state_.step);
  if (is_first_rank()) {
    metrics_log_->append(rollback_line(state_.step, spike.step, spike.loss, spike.z_score,
                                       guard_.skipped_batches()));
    std::fprintf(stderr,
                 "step %ld  loss %.4f, %.1f standard deviations above the last ones: back to step "
                 "%ld, and on behind the batches since; %ld skipped so far\n",
                 spike.step, spike.loss, spike.z_score, state_.step, guard_.skipped_batches());
  }
}

RunState Trainer::begin_state() {
  const RunState fresh = {0, 0, plan_.global_batch_size, data_.split.train->num_tokens()};
  if (!checkpoint_) {
    return fresh;
  }
  std::vector<std::string> notes;
  const RunState state =
      load_run(*checkpoint_, fresh, config_, parameters_, *optimizer_, named_buffers(), notes);
  for (const std::string& note : notes) {
    if (is_first_rank()) {
      std::fprintf(stderr, "changed since %s was saved: %s\n", checkpoint_->filename().c_str(),
                   note.c_str());
    }
  }
  return state;
}

void Trainer::train(const StopSignal& stop_signal, const std::function<void()>& under_way) {
  const int64_t last_step = config_.training.steps;
  if (is_first_rank() && state_.step < last_step) {
    progress_.emplace(state_.step + 1, last_step, config_.metrics.log_interval);
  }
  while (state_.step < last_step && !stopped_by_) {
    profiler_.before_step(state_.step + 1);
    const StepMetrics metrics = train_step(state_.step + 1);
    profiler_.after_step(state_.step + 1);
    under_way();
    if (spike()) {
      tell(saver_.settle());
      break;
    }
    state_.step = metrics.step;
    state_.tokens_seen = metrics.tokens_seen;
    timed_seconds_ += num_steps_trained_++ < kWarmUpSteps ? 0 : metrics.step_seconds;
    record(metrics);
    if (replica_check_.is_due(state_.step)) {
      check_replicas();
    }
    if (state_.step == last_step) {
      for (const auto& action : built_.actions) {
        action->after_training();
      }
    }
    stopped_by_ = signal_of_any_rank(stop_signal);
    if (!stopped_by_ && is_due(state_.step, config_.validation.interval, last_step)) {
      validate();
    }
    if (!stopped_by_ && is_due(state_.step, config_.generation.interval, last_step)) {
      write_sample();
    }
    save(/*is_last=*/stopped_by_ || state_.step == last_step);
  }
  progress_.reset();
}

void Trainer::record(const StepMetrics& metrics) {
  if (!is_first_rank()) {
    return;
  }
  metrics_log_->append(step_line(metrics));
  if (events_) {
    events_->add_scalars(metrics.step, step_scalars(metrics));
  }
  progress_->update(metrics);
  if (metrics.is_skipped) {
    char text[160];
    std::snprintf(text, sizeof text,
                  "step %ld  loss %g, gradient norm %g: not applied (%ld in a row, %ld in all)",
                  metrics.step, metrics.loss, metrics.grad_norm, guard_.skipped_in_a_row(),
                  guard_.skipped_steps());
    progress_->message(text);
  }
}

double Trainer::mean_step_seconds() const {
  const int64_t count = num_steps_trained_ - kWarmUpSteps;
  return count > 0 ? timed_seconds_ / static_cast<double>(count) : 0;
}

StepMetrics Trainer::train_step(int64_t step) {
  const Phase whole("step");
  const double started = now_seconds();
  const auto communicated = communication_ ? communication_->time() : comm::StreamTime{};
  for (const auto& action : built_.actions) {
    action->before_step(step);
  }
  const double lr = config_.optimizer.lr * scheduler_.factor(step - 1);
  const at::Tensor local_loss = accumulate_gradients(step, lr);
  for (const auto& action : built_.actions) {
    action->after_backward();
  }
  const auto [loss, grad_norm] = measure(local_loss);
  const StepGuard::Verdict verdict = guard_.judge(step, loss, grad_norm);
  apply_gradients(verdict, lr, grad_norm);
  run_actions_after(step, verdict);

  StepMetrics metrics;
  metrics.step = step;
  metrics.is_skipped = verdict != StepGuard::Verdict::kApply;
  metrics.skipped_steps = guard_.skipped_steps();
  metrics.loss = loss;
  metrics.grad_norm = grad_norm;
  metrics.lr = lr;
  const int64_t tokens = plan_.global_batch_size * config_.training.seq_len;
  metrics.step_seconds = now_seconds() - started;
  metrics.tokens_per_second = static_cast<double>(tokens) / metrics.step_seconds;
  metrics.peak_memory_bytes = peak_memory_bytes(device_);
  metrics.tokens_seen = state_.tokens_seen + tokens;
  if (communication_) {
    const comm::StreamTime now = communication_->time();
    metrics.communication_seconds = now.running_seconds - communicated.running_seconds;
    metrics.exposed_communication_seconds = now.waited_seconds - communicated.waited_seconds;
  }
  return metrics;
}

std::pair<double, double> Trainer::measure(const at::Tensor& local_loss) {
  const Phase phase("step/gradient norm");
  // The one wait for a GPU in a step; the loss is there by then.
  const double grad_norm =
      fsdp::total_grad_norm(parameters_, mesh_, 2.0, optimizer_->applied_gradient_norms());
  return {sum_over_ranks(local_loss.item<double>()), grad_norm};
}

void Trainer::apply_gradients(StepGuard::Verdict verdict, double lr, double grad_norm) {
  const Phase phase("step/optimizer");
  if (verdict == StepGuard::Verdict::kApply) {
    const double max_norm = config_.training.max_norm;
    optimizer_->step(lr, max_norm > 0 ? fsdp::clip_coefficient(grad_norm, max_norm) : 1.0);
  }
  optimizer_->zero_grad();
}

void Trainer::run_actions_after(int64_t step, StepGuard::Verdict verdict) {
  for (const auto& action : built_.actions) {
    if (verdict != StepGuard::Verdict::kApply) {
      action->after_skipped_step(step);
      continue;
    }
    tell(action->after_step(step));
  }
}

void Trainer::tell(const StepReport& report) {
  if (!is_first_rank()) {
    return;
  }
  for (const std::string& line : report.metrics_lines) {
    metrics_log_->append(line);
  }
  for (const std::string& warning : report.warnings) {
    progress_->message(warning);
  }
}

NamedBuffers Trainer::named_buffers() {
  NamedBuffers all = guard_.named_buffers();
  for (const auto& action : built_.actions) {
    const NamedBuffers buffers = action->named_buffers();
    all.insert(all.end(), buffers.begin(), buffers.end());
  }
  return all;
}

void Trainer::check_replicas() {
  NamedBuffers of_shard;
  for (const fsdp::ShardedParameter& parameter : parameters_) {
    of_shard.emplace_back("model." + parameter.fqn, parameter.local);
  }
  for (const optim::StateTensor& state : optimizer_->state()) {
    of_shard.emplace_back("optimizer." + state.name, state.local);
  }
  NamedBuffers of_run = named_buffers();
  of_run.emplace_back(
      "the run's step, tokens and schedule",
      at::tensor(
          {static_cast<double>(state_.step), static_cast<double>(state_.tokens_seen),
           static_cast<double>(state_.global_batch_size), static_cast<double>(state_.train_tokens),
           static_cast<double>(config_.training.seed),
           static_cast<double>(optimizer_->step_count()), scheduler_.factor(state_.step)},
          at::kDouble));
  replica_check_.check(state_.step, of_shard, of_run);
}

at::Tensor Trainer::forward(data::Batch& batch, double weight) {
  const Phase phase("step/forward");
  return model_->loss_sum(to_tensor(batch.inputs, batch, device_),
                          to_tensor(batch.targets, batch, device_), weight,
                          cu_seqlens_of(batch, device_));
}

at::Tensor Trainer::accumulate_gradients(int64_t step, double lr) {
  const int64_t batch_size = config_.training.local_batch_size;
  const int64_t num_micro_batches = plan_.accumulation_steps;
  const int64_t first_sample = mesh_.world().rank() * num_micro_batches * batch_size;
  // The divisor is known before the first backward, so that every token of the global batch weighs
  // the same whatever rank and micro-batch it is in.
  std::vector<data::Batch> batches;
  int64_t num_valid = 0;
  const int64_t index = step - 1 + guard_.skipped_batches();
  for (int64_t i = 0; i < num_micro_batches; ++i) {
    batches.push_back(loader_.batch(index, first_sample + i * batch_size, batch_size));
    num_valid += batches.back().num_valid_tokens;
  }
  // A batch without a target, of questions alone, leaves gradients of 0.
  const double global_valid = std::max(1.0, sum_over_ranks(static_cast<double>(num_valid)));
  at::Tensor loss = at::zeros({}, at::TensorOptions(device_).dtype(at::kDouble));
  for (int64_t i = 0; i < num_micro_batches; ++i) {
    data::Batch& batch = batches[i];
    for (const auto& action : built_.actions) {
      action->before_forward(first_sample + i * batch_size);
    }
    fsdp::set_requires_gradient_sync(*model_, i == num_micro_batches - 1);
    const at::Tensor part = forward(batch, 1.0 / global_valid);
    if (i == num_micro_batches - 1) {
      optimizer_->begin_last_backward(lr);
    }
    const Phase phase("step/backward");
    part.backward();
    loss.add_(part.detach());
  }
  return loss;
}

void Trainer::validate() {
  const at::NoGradGuard no_grad;
  const double started = now_seconds();
  const auto gathered = gather_if_it_fits(*model_, config_);
  // Batches are those of the whole world, of which a rank takes its part: what is scored does not
  // depend on the number of ranks.
  const int64_t per_rank = plan_.global_batch_size / mesh_.world().size();
  const int64_t batch_size = std::min(per_rank, config_.validation.local_batch_size);
  const int64_t max_batches = config_.validation.max_batches;
  const int64_t num_batches = max_batches > 0
                                  ? std::min(max_batches, validation_loader_->num_batches())
                                  : validation_loader_->num_batches();
  double loss_sum = 0;
  double num_valid = 0;
  for (int64_t i = 0; i < num_batches; ++i) {
    for (int64_t done = 0; done < per_rank; done += batch_size) {
      data::Batch batch = validation_loader_->batch(i, mesh_.world().rank() * per_rank + done,
                                                    std::min(batch_size, per_rank - done));
      loss_sum += model_
                      ->loss_sum(to_tensor(batch.inputs, batch, device_),
                                 to_tensor(batch.targets, batch, device_), /*scale=*/1.0,
                                 cu_seqlens_of(batch, device_))
                      .item<double>();
      num_valid += static_cast<double>(batch.num_valid_tokens);
    }
  }
  const double tokens = sum_over_ranks(num_valid);
  const double loss = sum_over_ranks(loss_sum) / std::max(1.0, tokens);
  if (is_first_rank()) {
    const double seconds = now_seconds() - started;
    metrics_log_->append(validation_line(state_.step, loss, static_cast<int64_t>(tokens), seconds));
    if (events_) {
      events_->add_scalars(state_.step, {{"validation_metrics/loss", loss}});
    }
    char text[96];
    std::snprintf(text, sizeof text, "step %ld  validation_loss %.4f  (%.0f tokens, %.1f s)",
                  state_.step, loss, tokens, seconds);
    progress_->message(text);
  }
}

void Trainer::write_sample() {
  // Every rank generates, since gathering is collective; the same seed gives the same text.
  const auto gathered = gather_if_it_fits(*model_, config_);
  nn::SamplingOptions options;
  options.max_new_tokens = config_.generation.max_new_tokens;
  options.temperature = config_.generation.temperature;
  options.top_p = config_.generation.top_p;
  options.seed = static_cast<uint64_t>(config_.training.seed);
  Continuation continuation(*data_.tokenizer, prompt_);
  nn::generate(*model_, prompt_, options, [&](int64_t token) { continuation.add(token); });
  if (is_first_rank()) {
    const std::string text = continuation.finish();
    samples_log_->append(nlohmann::ordered_json{
        {"step", state_.step},
        {"prompt", config_.generation.prompt},
        {"text", text}}.dump());
    if (events_) {
      events_->add_text(state_.step, "sample", config_.generation.prompt + text);
    }
    progress_->message("step " + std::to_string(state_.step) +
                       "  sample: " + config_.generation.prompt + text);
  }
}

void Trainer::save(bool is_last) {
  if (!config_.checkpoint.enable) {
    return;
  }
  tell(saver_.after_step(state_.step, is_last));
  if (is_first_rank()) {
    progress_->set_note(saver_.note());
  }
}

void Trainer::export_model() {
  const auto full_parameter = [this](const std::string& name) {
    for (const fsdp::ShardedParameter& parameter : parameters_) {
      if (parameter.fqn == name) {
        return fsdp::full_parameter(parameter, mesh_);
      }
    }
    throw std::logic_error("no parameter " + name);
  };
  export_trained({config_, run_, data_.tokenizer.get(), full_parameter, built_.prepared,
                  built_.adapted, is_first_rank()});
}

std::optional<std::string> Trainer::signal_of_any_rank(const StopSignal& stop_signal) {
  const std::optional<std::string> received = stop_signal.received();
  if (sum_over_ranks(received ? 1.0 : 0.0) == 0.0) {
    return std::nullopt;
  }
  return received.value_or("a signal to another rank");
}

double Trainer::sum_over_ranks(double value) {
  const at::Tensor sum = at::full({1}, value, at::kDouble);
  mesh_.world().all_reduce(sum, comm::ReduceOp::kSum);
  return sum.item<double>();
}

}  // namespace narrowgauge::trainer
