#include "trainer/pruned_weights.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "fsdp/fully_shard.h"
#include "nn/linear.h"

namespace narrowgauge::trainer {
namespace {

class PrunedWeightsAction final : public StepAction {
 public:
  PrunedWeightsAction(const SparsityConfig& config, nn::Transformer& model,
                      const comm::DeviceMesh& mesh)
      : mesh_(mesh) {
    const auto is_left_alone = [&](const std::string& fqn) {
      return std::ranges::any_of(config.filter_fqns, [&](const std::string& pattern) {
        return fqn.find(pattern) != std::string::npos;
      });
    };
    std::set<std::string> weights;
    for (const auto& item : model.named_modules()) {
      if (dynamic_cast<const nn::Linear*>(item.value().get()) != nullptr &&
          !is_left_alone(item.key())) {
        weights.insert(item.key() + ".weight");
      }
    }
    for (fsdp::ShardedParameter& parameter : fsdp::sharded_parameters(model)) {
      if (weights.contains(parameter.fqn)) {
        weights_.push_back({std::move(parameter.local), {}});
      }
    }
  }

  void before_training() override {
    const at::NoGradGuard no_grad;
    const at::Tensor counts = at::zeros({2}, at::kLong);
    for (Weight& weight : weights_) {
      weight.is_zero = weight.local.eq(0);
      counts[0].add_(weight.is_zero.sum().cpu());
      counts[1].add_(weight.local.numel());
    }
    mesh_.world().all_reduce(counts, comm::ReduceOp::kSum);
    const auto num_zeros = static_cast<double>(counts[0].item<int64_t>());
    if (num_zeros == 0) {
      throw std::runtime_error(
          "sparsity.kind pruned: expected zeros in the linears of model.initial_load_path, got "
          "none; `narrowgauge prune` makes them");
    }
    if (mesh_.world().rank() == 0) {
      std::fprintf(stderr, "sparsity pruned: %zu linears, %.2f %% of their weights stay 0\n",
                   weights_.size(),
                   100 * num_zeros / static_cast<double>(counts[1].item<int64_t>()));
    }
  }

  void after_backward() override {
    const at::NoGradGuard no_grad;
    for (const Weight& weight : weights_) {
      if (at::Tensor grad = weight.local.grad(); grad.defined()) {
        grad.masked_fill_(weight.is_zero, 0);
      }
    }
  }

  StepReport after_step(int64_t /*step*/) override {
    const at::NoGradGuard no_grad;
    for (Weight& weight : weights_) {
      weight.local.masked_fill_(weight.is_zero, 0);
    }
    return {};
  }

 private:
  struct Weight {
    at::Tensor local;    // this rank's rows
    at::Tensor is_zero;  // bool, of the same sizes
  };

  const comm::DeviceMesh& mesh_;
  std::vector<Weight> weights_;
};

}  // namespace

std::unique_ptr<StepAction> make_pruned_weights_action(const SparsityConfig& config,
                                                       nn::Transformer& model,
                                                       const comm::DeviceMesh& mesh) {
  return std::make_unique<PrunedWeightsAction>(config, model, mesh);
}

}  // namespace narrowgauge::trainer
