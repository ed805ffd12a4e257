#include "tests/fsdp/toy_model.h"

#include <ATen/core/Reduction.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace narrowgauge::fsdp {

ToyBlock::ToyBlock(int64_t dim, int64_t hidden, const at::TensorOptions& options) {
  add_child("in", in, std::make_shared<nn::Linear>(nn::LinearSpec{dim, hidden, true}, options));
  add_child("out", out, std::make_shared<nn::Linear>(nn::LinearSpec{hidden, dim, true}, options));
}

at::Tensor ToyBlock::operator()(const at::Tensor& x) {
  return hooked(x, [this](const at::Tensor& y) { return y.add((*out)((*in)(y).relu())); });
}

ToyModel::ToyModel(const ToySpec& spec, const at::TensorOptions& options) {
  add_child("embed_tokens", embed_tokens,
            std::make_shared<nn::Embedding>(spec.vocab, spec.dim, options));
  blocks.resize(spec.num_blocks);
  for (int64_t i = 0; i < spec.num_blocks; ++i) {
    add_child("block" + std::to_string(i), blocks[i],
              std::make_shared<ToyBlock>(spec.dim, spec.hidden, options));
  }
  if (spec.tied) {
    auto head = std::make_shared<nn::Linear>(nn::LinearSpec{spec.dim, spec.vocab}, at::kMeta);
    head->replace_parameter("weight", embed_tokens->weight);
    add_child("lm_head", lm_head, head);
  } else {
    add_child("lm_head", lm_head,
              std::make_shared<nn::Linear>(nn::LinearSpec{spec.dim, spec.vocab}, options));
  }
}

at::Tensor ToyModel::operator()(const at::Tensor& tokens) {
  return hooked(tokens, [this](const at::Tensor& ids) {
    at::Tensor x = (*embed_tokens)(ids);
    for (const auto& block : blocks) {
      x = (*block)(x);
    }
    return (*lm_head)(x);
  });
}

at::Tensor ToyModel::loss_sum(const at::Tensor& tokens, const at::Tensor& targets) {
  const at::Tensor logits = (*this)(tokens);
  return at::cross_entropy_loss(logits.flatten(0, 1).to(at::kFloat), targets.flatten(), {},
                                at::Reduction::Sum);
}

void initialize_toy(const std::string& fqn, at::Tensor shard, int64_t row_begin) {
  const int64_t row_numel = shard.numel() / std::max<int64_t>(shard.size(0), 1);
  double phase = 0.0;
  for (const char letter : fqn) {
    phase = phase * 1.7 + letter;
  }
  const at::Tensor positions =
      at::arange(shard.numel(), at::kDouble).add(static_cast<double>(row_begin * row_numel));
  // About the variance that keeps activations at their size.
  const double scale = 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(row_numel, 1)));
  shard.copy_(positions.mul(0.7).add(phase).sin().mul(scale).view(shard.sizes()));
}

std::shared_ptr<ToyModel> make_sharded_toy(const ToySpec& spec, const comm::DeviceMesh& mesh,
                                           const FullyShardOptions& options) {
  auto model = std::make_shared<ToyModel>(spec, at::TensorOptions(at::kMeta));
  for (const auto& block : model->blocks) {
    fully_shard(*block, mesh, options);
  }
  fully_shard(*model, mesh, options);
  materialize(*model, at::kCPU, initialize_toy);
  return model;
}

std::shared_ptr<ToyModel> make_reference_toy(const ToySpec& spec) {
  auto model = std::make_shared<ToyModel>(spec, at::TensorOptions());
  const c10::NoGradGuard no_grad;
  for (const auto& parameter : model->named_parameters()) {
    if (parameter.key() != "lm_head.weight" || !spec.tied) {
      initialize_toy(parameter.key(), parameter.value().detach(), 0);
    }
  }
  return model;
}

ToyBatch toy_batch(const ToySpec& spec, int64_t step, int64_t batch) {
  const at::Tensor positions = at::arange(batch * 4, at::kLong).add(37 * step);
  const at::Tensor tokens = positions.mul(positions).add(3 * step).remainder(spec.vocab);
  return {tokens.view({batch, 4}), tokens.mul(5).add(1).remainder(spec.vocab).view({batch, 4})};
}

ToyBatch slice_of_rank(const ToyBatch& batch, int rank, int size) {
  const int64_t per_rank = batch.tokens.size(0) / size;
  return {batch.tokens.narrow(0, rank * per_rank, per_rank),
          batch.targets.narrow(0, rank * per_rank, per_rank)};
}

std::map<std::string, at::Tensor> full_parameters(nn::Layer& root, const comm::DeviceMesh& mesh) {
  std::map<std::string, at::Tensor> parameters;
  for (const ShardedParameter& parameter : sharded_parameters(root)) {
    parameters[parameter.fqn] = full_parameter(parameter, mesh);
  }
  return parameters;
}

std::vector<at::Tensor> locals_of(nn::Layer& root) {
  std::vector<at::Tensor> locals;
  for (const ShardedParameter& parameter : sharded_parameters(root)) {
    locals.push_back(parameter.local);
  }
  return locals;
}

ToyAdam::ToyAdam(std::vector<at::Tensor> parameters, double lr)
    : parameters_(std::move(parameters)), lr_(lr) {
  for (const at::Tensor& parameter : parameters_) {
    exp_avg_.push_back(at::zeros_like(parameter));
    exp_avg_sq_.push_back(at::zeros_like(parameter));
  }
}

void ToyAdam::step() {
  const c10::NoGradGuard no_grad;
  ++num_steps_;
  const double correction = 1.0 - std::pow(0.9, num_steps_);
  const double correction_sq = 1.0 - std::pow(0.95, num_steps_);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor& grad = parameters_[i].mutable_grad();
    if (!grad.defined()) {
      continue;
    }
    exp_avg_[i].mul_(0.9).add_(grad, 0.1);
    exp_avg_sq_[i].mul_(0.95).addcmul_(grad, grad, 0.05);
    const at::Tensor denominator = exp_avg_sq_[i].div(correction_sq).sqrt().add(1e-8);
    parameters_[i].detach().addcdiv_(exp_avg_[i], denominator, -lr_ / correction);
    if (num_steps_ % 2 == 0) {
      grad.zero_();
    } else {
      grad.reset();
    }
  }
}

}  // namespace narrowgauge::fsdp
