#include "tests/fsdp/parity_reference.h"

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

namespace narrowgauge::fsdp {
namespace {

constexpr int64_t kTokens = kParityBatch * 4;

void add(std::map<std::string, at::Tensor>& total, const std::map<std::string, at::Tensor>& part) {
  for (const auto& [fqn, gradient] : part) {
    total[fqn] = total.count(fqn) > 0 ? total[fqn].add(gradient) : gradient;
  }
}

}  // namespace

FullyShardOptions options_of(const TrainingCase& training) {
  FullyShardOptions options;
  options.mp_policy.param_dtype = training.param_dtype;
  options.mp_policy.reduce_dtype = at::kFloat;
  options.reshard_after_forward = training.reshard_after_forward;
  options.gradient_divide_factor = training.divide_factor;
  if (training.offload) {
    options.offload_policy = CPUOffloadPolicy{};
  }
  return options;
}

ParityReference::ParityReference(const TrainingCase& training)
    : training_(training),
      spec_{.tied = training.tied},
      masters_(unique_parameters(*make_reference_toy(spec_))),
      model_(std::make_shared<ToyModel>(spec_, at::TensorOptions(training.param_dtype))),
      adam_(leaves(), kParityLearningRate) {}

StepRecord ParityReference::step(int64_t step) {
  StepRecord record;
  std::map<std::string, at::Tensor> total;
  for (int replica = 0; replica < training_.replicate; ++replica) {
    std::map<std::string, at::Tensor> of_replica;
    for (int shard = 0; shard < training_.shard; ++shard) {
      add(of_replica, gradients_of_rank(step, replica * training_.shard + shard, record));
    }
    add(total, of_replica);
  }
  for (auto& [fqn, master] : masters_) {
    at::Tensor& grad = master.mutable_grad();
    const at::Tensor sum = total.at(fqn).div(training_.divide_factor);
    grad = grad.defined() ? grad.add(sum) : sum;
  }
  adam_.step();
  return record;
}

std::map<std::string, at::Tensor> ParityReference::unique_parameters(const ToyModel& model) const {
  std::map<std::string, at::Tensor> parameters;
  for (const auto& parameter : model.named_parameters()) {
    if (!training_.tied || parameter.key() != "lm_head.weight") {
      parameters[parameter.key()] = parameter.value();
    }
  }
  return parameters;
}

std::vector<at::Tensor> ParityReference::leaves() const {
  std::vector<at::Tensor> leaves;
  for (const auto& [fqn, master] : masters_) {
    leaves.push_back(master);
  }
  return leaves;
}

std::map<std::string, at::Tensor> ParityReference::gradients_of_rank(int64_t step, int rank,
                                                                     StepRecord& record) {
  const int world = training_.replicate * training_.shard;
  const ToyBatch mine = slice_of_rank(toy_batch(spec_, step, kParityBatch), rank, world);
  std::map<std::string, at::Tensor> gradients;
  for (int micro = 0; micro < training_.num_micro_batches; ++micro) {
    const c10::AutoGradMode grad_mode(true);
    for (const auto& [fqn, parameter] : unique_parameters(*model_)) {
      parameter.detach().copy_(masters_.at(fqn).detach());
      parameter.mutable_grad().reset();
    }
    const ToyBatch batch = slice_of_rank(mine, micro, training_.num_micro_batches);
    const at::Tensor loss = model_->loss_sum(batch.tokens, batch.targets).div(kTokens);
    loss.backward();
    std::map<std::string, at::Tensor> of_micro;
    for (const auto& [fqn, parameter] : unique_parameters(*model_)) {
      of_micro[fqn] = parameter.grad().to(at::kFloat);
    }
    add(gradients, of_micro);
    if (micro + 1 == training_.num_micro_batches) {
      record.losses.push_back(loss.item<float>());
    }
  }
  return gradients;
}

float train_step(ToyModel& model, ToyAdam& adam, const TrainingCase& training, int64_t step,
                 comm::Communicator& world) {
  const ToySpec spec{.tied = training.tied};
  const ToyBatch mine =
      slice_of_rank(toy_batch(spec, step, kParityBatch), world.rank(), world.size());
  float last_loss = 0;
  for (int micro = 0; micro < training.num_micro_batches; ++micro) {
    set_requires_gradient_sync(model, micro + 1 == training.num_micro_batches);
    const ToyBatch batch = slice_of_rank(mine, micro, training.num_micro_batches);
    const at::Tensor loss = model.loss_sum(batch.tokens, batch.targets).div(kTokens);
    loss.backward();
    last_loss = loss.item<float>();
  }
  adam.step();
  return last_loss;
}

void expect_parity(const TrainingCase& training, const std::shared_ptr<comm::Communicator>& world,
                   const std::vector<StepRecord>& expected, const ParityReference& reference,
                   const std::function<void(ToyModel&)>& prepare) {
  const comm::DeviceMesh mesh(world, training.replicate, training.shard);
  const auto model = make_sharded_toy({.tied = training.tied}, mesh, options_of(training));
  if (training.inline_streams) {
    set_streams(*model, CommStreams::inline_streams());
  }
  if (prepare) {
    prepare(*model);
  }
  ToyAdam adam(locals_of(*model), kParityLearningRate);
  for (size_t step = 0; step < expected.size(); ++step) {
    ASSERT_EQ(train_step(*model, adam, training, static_cast<int64_t>(step), *world),
              expected[step].losses[world->rank()])
        << "step " << step << ", rank " << world->rank();
  }
  const auto parameters = full_parameters(*model, mesh);
  ASSERT_EQ(parameters.size(), reference.masters().size());
  for (const auto& [fqn, parameter] : parameters) {
    EXPECT_TRUE(parameter.equal(reference.masters().at(fqn))) << fqn;
  }
}

}  // namespace narrowgauge::fsdp
