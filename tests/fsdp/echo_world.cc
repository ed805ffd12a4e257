#include "tests/fsdp/echo_world.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "fsdp/clip_grad_norm.h"

namespace narrowgauge::fsdp {
namespace {

// No number of shards leaves a short one.
const ToySpec kSpec{.vocab = 64, .dim = 32, .hidden = 128, .num_blocks = 4};
constexpr double kLearningRate = 1e-3;

// A whole parameter of equal shards.
at::Tensor repeat_shard(const at::Tensor& shard, int num_shards) {
  std::vector<int64_t> repeats(shard.dim(), 1);
  repeats[0] = num_shards;
  return shard.repeat(repeats);
}

// fp32 shards, each step's parameters made anew from them, as in the echo world.
class Reference {
 public:
  Reference(const EchoCase& tested, at::Device device)
      : tested_(tested),
        model_(std::make_shared<ToyModel>(kSpec,
                                          at::TensorOptions(tested.param_dtype).device(device))) {
    const c10::NoGradGuard no_grad;
    for (const auto& parameter : model_->named_parameters()) {
      std::vector<int64_t> sizes = parameter.value().sizes().vec();
      sizes[0] /= tested.shard;
      shards_[parameter.key()] = at::zeros(sizes, at::TensorOptions(at::kFloat).device(device));
      initialize_toy(parameter.key(), shards_[parameter.key()], 0);
    }
  }

  double step(const ToyBatch& batch) {
    for (const auto& parameter : model_->named_parameters()) {
      parameter.value().detach().copy_(repeat_shard(shards_[parameter.key()], tested_.shard));
      parameter.value().mutable_grad().reset();
    }
    const at::Tensor loss = model_->loss_sum(batch.tokens, batch.targets);
    loss.backward();
    const c10::NoGradGuard no_grad;
    double squares = 0;
    for (const auto& parameter : model_->named_parameters()) {
      at::Tensor& shard = shards_[parameter.key()];
      const at::Tensor grad = parameter.value().grad().narrow(0, 0, shard.size(0)).to(at::kFloat);
      shard.sub_(grad.mul(kLearningRate));  // the mean over ranks
      squares += grad.to(at::kDouble).square().sum().item<double>();
    }
    grad_norm_ = std::sqrt(tested_.shard * squares);
    return loss.item<double>();
  }

  const std::map<std::string, at::Tensor>& shards() const { return shards_; }
  // Of the last step.
  double grad_norm() const { return grad_norm_; }

 private:
  EchoCase tested_;
  std::shared_ptr<ToyModel> model_;
  std::map<std::string, at::Tensor> shards_;
  double grad_norm_ = 0;
};

}  // namespace

void EchoCommunicator::wait() const {
  if (delay_) {
    delay_();
  }
}

void EchoCommunicator::all_gather(const at::Tensor& output, const at::Tensor& input) {
  wait();
  const at::Tensor slices = output.view({size_, -1});
  alone_->all_gather(slices.select(0, 0), input);
  for (int other = 1; other < size_; ++other) {
    slices.select(0, other).copy_(input.view({-1}));
  }
}

void EchoCommunicator::reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                      comm::ReduceOp op) {
  wait();
  alone_->reduce_scatter(output, input.view({size_, -1}).select(0, 0), op);
  if (op == comm::ReduceOp::kSum) {
    output.mul_(size_);
  }
}

void EchoCommunicator::all_reduce(const at::Tensor& tensor, comm::ReduceOp op) {
  wait();
  alone_->all_reduce(tensor, op);
  if (op == comm::ReduceOp::kSum) {
    tensor.mul_(size_);
  }
}

EchoModel make_echo_model(const EchoCase& tested, const ToySpec& spec, at::Device device,
                          const std::shared_ptr<comm::Communicator>& alone,
                          const std::function<void()>& delay) {
  const comm::DeviceMesh mesh(
      std::make_shared<EchoCommunicator>(alone, tested.replicate * tested.shard, 2, delay),
      tested.replicate, tested.shard);
  auto model = std::make_shared<ToyModel>(spec, at::TensorOptions(at::kMeta));
  FullyShardOptions options;
  options.mp_policy = {.param_dtype = tested.param_dtype, .reduce_dtype = at::kFloat};
  options.reshard_after_forward = tested.reshard_after_forward;
  options.gradient_divide_factor = tested.replicate * tested.shard;
  if (tested.offload) {
    options.offload_policy = CPUOffloadPolicy{};
  }
  for (const auto& block : model->blocks) {
    fully_shard(*block, mesh, options);
  }
  fully_shard(*model, mesh, options);
  materialize(*model, device, initialize_toy);
  return {mesh, model};
}

void expect_echo_parity(const EchoCase& tested, at::Device device,
                        const std::shared_ptr<comm::Communicator>& alone,
                        const std::optional<CommStreams>& streams,
                        const std::function<void()>& delay) {
  Reference reference(tested, device);
  const auto [mesh, model] = make_echo_model(tested, kSpec, device, alone, delay);
  if (streams) {
    set_streams(*model, *streams);
  }
  double first_loss = 0;
  double loss = 0;
  for (int step = 0; step < 6; ++step) {
    ToyBatch batch = toy_batch(kSpec, step % 2, 4);
    batch.tokens = batch.tokens.to(device);
    batch.targets = batch.targets.to(device);
    const double expected = reference.step(batch);
    const at::Tensor actual = model->loss_sum(batch.tokens, batch.targets);
    actual.backward();
    loss = actual.item<double>();
    first_loss = step == 0 ? loss : first_loss;
    // The same kernels on the same values: the same bits, if nothing is read early or freed early.
    ASSERT_EQ(loss, expected) << tested.name << ", step " << step;
    const c10::NoGradGuard no_grad;
    // Sums meet where the shards are: of offloaded ones on the CPU.
    const double norm = total_grad_norm(sharded_parameters(*model), mesh);
    EXPECT_NEAR(norm / reference.grad_norm(), 1.0, 1e-5) << tested.name << ", step " << step;
    for (const ShardedParameter& parameter : sharded_parameters(*model)) {
      at::Tensor local = parameter.local;
      ASSERT_EQ(local.device().is_cpu(), tested.offload || device.is_cpu());
      ASSERT_EQ(local.grad().device(), local.device());
      local.detach().sub_(local.grad().mul(kLearningRate));
      local.mutable_grad().reset();
    }
  }
  EXPECT_LT(loss, first_loss) << "it does not learn";
  for (const ShardedParameter& parameter : sharded_parameters(*model)) {
    EXPECT_TRUE(
        parameter.local.equal(reference.shards().at(parameter.fqn).to(parameter.local.device())))
        << tested.name << " " << parameter.fqn;
  }
}

}  // namespace narrowgauge::fsdp
