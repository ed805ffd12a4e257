#include "trainer/trainer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "checkpoint/huggingface_names.h"
#include "data/utf8.h"
#include "fsdp/clip_grad_norm.h"
#include "fsdp/fully_shard.h"
#include "nn/sampling.h"
#include "trainer/build_model.h"
#include "trainer/build_optimizer.h"
#include "trainer/dtype.h"
#include "trainer/export_run.h"

namespace narrowgauge::trainer {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// [batch_size, seq_len] int64 on `device`. `tokens` may be gone afterwards.
at::Tensor to_tensor(std::vector<int64_t>& tokens, const data::Batch& batch, at::Device device) {
  const at::Tensor view =
      at::from_blob(tokens.data(), {batch.batch_size, batch.seq_len}, at::kLong);
  return device.is_cpu() ? view.clone() : view.to(device);
}

bool is_due(int64_t step, int64_t interval, int64_t last_step) {
  return interval > 0 && (step % interval == 0 || step == last_step);
}

}  // namespace

Trainer::Trainer(const TrainConfig& config, const RunDirectory& run, TrainingData data,
                 std::shared_ptr<comm::Communicator> world, at::Device device)
    : config_(config),
      run_(run),
      data_(std::move(data)),
      device_(device),
      plan_(plan_ranks(config, world->size())),
      mesh_(world, static_cast<int>(plan_.replicate_degree), static_cast<int>(plan_.shard_degree)),
      model_(build_model(config, mesh_, device)),
      parameters_(fsdp::sharded_parameters(*model_)),
      optimizer_(build_optimizer(config, parameters_)),
      scheduler_(build_lr_scheduler(config)),
      loader_(data_.split.train, {config.training.seq_len, plan_.global_batch_size,
                                  static_cast<uint64_t>(config.training.seed)}) {
  if (const auto checkpoint =
          find_checkpoint(run.checkpoints(), config.checkpoint.load_step, *world)) {
    state_ = load_run(*checkpoint, parameters_, *optimizer_);
  }
  if (is_first_rank()) {
    metrics_log_.emplace(run.metrics_file(), state_.step);
  }
}

void Trainer::train() {
  const int64_t last_step = config_.training.steps;
  if (is_first_rank() && state_.step < last_step) {
    progress_.emplace(state_.step + 1, last_step, config_.metrics.log_interval);
  }
  while (state_.step < last_step && !stopped_by_) {
    const StepMetrics metrics = train_step(state_.step + 1);
    state_ = {metrics.step, metrics.tokens_seen};
    if (progress_) {
      metrics_log_->log_step(metrics);
      progress_->update(metrics);
    }
    if (is_due(state_.step, config_.validation.interval, last_step)) {
      validate(state_.step);
    }
    if (is_due(state_.step, config_.generation.interval, last_step)) {
      write_sample(state_.step);
    }
    if (any_rank_stopped() || is_due(state_.step, config_.checkpoint.interval, last_step)) {
      save();
    }
  }
  progress_.reset();
}

StepMetrics Trainer::train_step(int64_t step) {
  const double started = now_seconds();
  const double loss = sum_over_ranks(accumulate_gradients(step));
  const double grad_norm = fsdp::total_grad_norm(parameters_, mesh_);
  if (!std::isfinite(loss) || !std::isfinite(grad_norm)) {
    throw std::runtime_error(
        "step " + std::to_string(step) + ": loss is " + std::to_string(loss) +
        " and the gradient norm is " + std::to_string(grad_norm) +
        "; nothing of this step was applied. Lower optimizer.lr or resume from an "
        "earlier checkpoint with checkpoint.load_step");
  }
  const double lr = config_.optimizer.lr * scheduler_.factor(step - 1);
  const double max_norm = config_.training.max_norm;
  optimizer_->step(lr, max_norm > 0 ? fsdp::clip_coefficient(grad_norm, max_norm) : 1.0);
  optimizer_->zero_grad();

  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = loss;
  metrics.grad_norm = grad_norm;
  metrics.lr = lr;
  const int64_t tokens = plan_.global_batch_size * config_.training.seq_len;
  metrics.step_seconds = now_seconds() - started;
  metrics.tokens_per_second = static_cast<double>(tokens) / metrics.step_seconds;
  metrics.peak_memory_bytes = peak_resident_bytes();
  metrics.tokens_seen = state_.tokens_seen + tokens;
  return metrics;
}

double Trainer::accumulate_gradients(int64_t step) {
  const int64_t batch_size = config_.training.local_batch_size;
  const int64_t num_micro_batches = plan_.accumulation_steps;
  const int64_t first_sample = mesh_.world().rank() * num_micro_batches * batch_size;
  // The divisor is known before the first backward, so that every token of the global batch weighs
  // the same whatever rank and micro-batch it is in.
  std::vector<data::Batch> batches;
  int64_t num_valid = 0;
  for (int64_t i = 0; i < num_micro_batches; ++i) {
    batches.push_back(loader_.batch(step - 1, first_sample + i * batch_size, batch_size));
    num_valid += batches.back().num_valid_tokens;
  }
  const double global_valid = sum_over_ranks(static_cast<double>(num_valid));
  double loss = 0;
  for (int64_t i = 0; i < num_micro_batches; ++i) {
    data::Batch& batch = batches[i];
    fsdp::set_requires_gradient_sync(*model_, i == num_micro_batches - 1);
    const at::Tensor loss_sum = model_->loss_sum(to_tensor(batch.inputs, batch, device_),
                                                 to_tensor(batch.targets, batch, device_));
    const at::Tensor mean = loss_sum.div(global_valid);
    mean.backward();
    loss += mean.item<double>();
  }
  return loss;
}

double Trainer::validate(int64_t step) {
  const at::NoGradGuard no_grad;
  const double started = now_seconds();
  const fsdp::GatheredParameters gathered(*model_);
  const int64_t batch_size = config_.validation.local_batch_size;
  const int64_t world_size = mesh_.world().size();
  const data::ValidationLoader loader(data_.split.validation, config_.training.seq_len,
                                      world_size * batch_size);
  const int64_t max_batches = config_.validation.max_batches;
  const int64_t num_batches =
      max_batches > 0 ? std::min(max_batches, loader.num_batches()) : loader.num_batches();
  double loss_sum = 0;
  double num_valid = 0;
  for (int64_t i = 0; i < num_batches; ++i) {
    data::Batch batch = loader.batch(i, mesh_.world().rank() * batch_size, batch_size);
    loss_sum += model_
                    ->loss_sum(to_tensor(batch.inputs, batch, device_),
                               to_tensor(batch.targets, batch, device_))
                    .item<double>();
    num_valid += static_cast<double>(batch.num_valid_tokens);
  }
  const double tokens = sum_over_ranks(num_valid);
  const double loss = sum_over_ranks(loss_sum) / tokens;
  if (progress_) {
    const double seconds = now_seconds() - started;
    metrics_log_->log_validation(step, loss, static_cast<int64_t>(tokens), seconds);
    char text[96];
    std::snprintf(text, sizeof text, "step %ld  validation_loss %.4f  (%.0f tokens, %.1f s)", step,
                  loss, tokens, seconds);
    progress_->message(text);
  }
  return loss;
}

void Trainer::write_sample(int64_t step) {
  // Every rank generates: gathering is collective, and the same seed gives the same text.
  const fsdp::GatheredParameters gathered(*model_);
  const std::vector<int32_t> prompt = data_.tokenizer->encode(config_.generation.prompt);
  nn::SamplingOptions options;
  options.max_new_tokens = config_.generation.max_new_tokens;
  options.temperature = config_.generation.temperature;
  options.top_p = config_.generation.top_p;
  options.seed = static_cast<uint64_t>(config_.training.seed);
  const std::vector<int64_t> ids(prompt.begin(), prompt.end());
  const std::vector<int64_t> generated = nn::generate(*model_, ids, options);
  if (progress_) {
    // Bytes that a byte-level model puts together wrongly are no text: show them as U+FFFD.
    const std::string text = data::replace_invalid_utf8(
        data_.tokenizer->decode(std::vector<int32_t>(generated.begin(), generated.end())));
    std::ofstream(run_.samples_file(), std::ios::app)
        << nlohmann::ordered_json{{"step", step},
                                  {"prompt", config_.generation.prompt},
                                  {"text", text}}
        << '\n';
    progress_->message("step " + std::to_string(step) + "  sample: " + config_.generation.prompt +
                       text);
  }
}

void Trainer::save() {
  if (config_.checkpoint.enable) {
    save_run(run_.checkpoints(), state_, parameters_, *optimizer_, config_.checkpoint.keep_latest_k,
             mesh_.world());
  }
}

void Trainer::export_huggingface() {
  const auto full_parameter = [this](const std::string& name) {
    for (const fsdp::ShardedParameter& parameter : parameters_) {
      if (parameter.fqn == name) {
        return fsdp::full_parameter(parameter, mesh_);
      }
    }
    throw std::logic_error("no parameter " + name);
  };
  if (is_first_rank()) {
    export_huggingface_directory(run_.huggingface(), config_.model, data_.tokenizer.get(),
                                 parse_dtype(config_.export_.dtype), full_parameter);
    std::fprintf(stderr, "exported %s\n", run_.huggingface().c_str());
    return;
  }
  // The writer gathers each parameter in this order.
  for (const checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config_.model)) {
    full_parameter(spec.name);
  }
}

bool Trainer::any_rank_stopped() {
  const std::optional<std::string> received = stop_signal_.received();
  if (sum_over_ranks(received ? 1.0 : 0.0) == 0.0) {
    return false;
  }
  stopped_by_ = received.value_or("a signal to another rank");
  return true;
}

double Trainer::sum_over_ranks(double value) {
  const at::Tensor sum = at::full({1}, value, at::kDouble);
  mesh_.world().all_reduce(sum, comm::ReduceOp::kSum);
  return sum.item<double>();
}

}  // namespace narrowgauge::trainer
