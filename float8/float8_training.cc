#include "float8/float8_training.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "fsdp/fully_shard.h"

namespace narrowgauge::float8 {
namespace {

// Flat amaxes of many operands, which travel together.
class FlatAmaxes {
 public:
  // device: where they meet; shards of an offloaded weight are elsewhere.
  explicit FlatAmaxes(at::Device device) : device_(device) {}

  // amax: fp32, any shape. what: for the error message.
  void add(std::string what, const at::Tensor& amax) {
    what_.push_back(std::move(what));
    amaxes_.push_back(amax.reshape({-1}).to(device_));
  }

  // The largest over the ranks of `group`. Throws, on all of them, unless all are finite.
  void all_reduce(comm::Communicator& group) {
    std::vector<int64_t> sizes;
    for (const at::Tensor& amax : amaxes_) {
      sizes.push_back(amax.numel());
    }
    const at::Tensor flat = amaxes_.empty() ? at::zeros({0}, at::kFloat) : at::cat(amaxes_);
    if (flat.numel() == 0) {
      return;
    }
    if (group.size() > 1) {
      group.all_reduce(flat, comm::ReduceOp::kMax);
    }
    amaxes_ = flat.split_with_sizes(sizes);
    const at::Tensor host = flat.cpu();  // the one place where a step waits for the device
    on_host_ = host.split_with_sizes(sizes);
    if (!at::isfinite(host).all().item<bool>()) {
      throw_not_finite();
    }
  }

  const at::Tensor& operator[](size_t i) const { return amaxes_[i]; }
  const at::Tensor& on_host(size_t i) const { return on_host_[i]; }

 private:
  void throw_not_finite() const {
    for (size_t i = 0; i < what_.size(); ++i) {
      TORCH_CHECK(at::isfinite(on_host_[i]).all().item<bool>(), "expected finite values in ",
                  what_[i], ", got an amax of ", on_host_[i].max().item<double>(),
                  "; go on from an earlier checkpoint with a lower learning rate, or leave that "
                  "layer in high precision (float8.filter_fqns)");
    }
  }

  at::Device device_;
  std::vector<std::string> what_;
  std::vector<at::Tensor> amaxes_;
  std::vector<at::Tensor> on_host_;
};

// Copies the scales that have changed, which are on the CPU then, to `device` at once.
void move_scales(const std::vector<AmaxHistory*>& histories, at::Device device) {
  std::vector<AmaxHistory*> changed;
  std::vector<at::Tensor> scales;
  for (AmaxHistory* history : histories) {
    if (history->scale().defined() && history->scale().is_cpu()) {
      changed.push_back(history);
      scales.push_back(history->scale().reshape({1}));
    }
  }
  if (device.is_cpu() || changed.empty()) {
    return;
  }
  const at::Tensor on_device = at::cat(scales).to(device);
  for (size_t i = 0; i < changed.size(); ++i) {
    changed[i]->set_scale(on_device.select(0, static_cast<int64_t>(i)));
  }
}

}  // namespace

Float8Training::Float8Training(nn::Layer& root, comm::DeviceMesh mesh)
    : root_(root), mesh_(std::move(mesh)) {
  find_layers(root, "");
  for (const NamedLayer& layer : layers_) {
    Float8LinearState& state = *layer.state;
    operands_.push_back({layer.fqn, "input", &state.input});
    operands_.push_back({layer.fqn, "weight", &state.weight});
    operands_.push_back({layer.fqn, "grad_output", &state.grad_output});
    uses_delayed_scaling_ = uses_delayed_scaling_ || state.config.uses_delayed_scaling();
  }
}

void Float8Training::find_layers(const nn::Layer& layer, const std::string& prefix) {
  for (const auto& [name, child] : layer.child_layers()) {
    if (auto* linear = dynamic_cast<Float8Linear*>(child.get())) {
      layers_.push_back({prefix + name, linear->shared_state()});
    }
    find_layers(*child, prefix + name + ".");
  }
}

comm::Communicator& Float8Training::group() const {
  // Replicas hold equal weights, but each rank has activations of its own.
  return uses_delayed_scaling_ ? mesh_.world() : mesh_.shard_axis();
}

at::Device Float8Training::device() const { return root_.parameters()[0].device(); }

void Float8Training::refresh() {
  std::vector<AmaxHistory*> histories;
  for (const NamedOperand& operand : operands_) {
    if (operand.operand->is_delayed()) {
      operand.operand->take_amax();
      histories.push_back(&operand.operand->history());
      histories.back()->restored();
    }
  }
  if (!histories.empty()) {
    move_scales(histories, device());
  }
  agree(/*with_histories=*/false);
}

void Float8Training::after_optimizer_step() { agree(/*with_histories=*/true); }

std::map<std::string, at::Tensor> Float8Training::gathered_weights() const {
  const auto is_gathered = [](const NamedLayer& layer) { return layer.state->gather != nullptr; };
  std::map<std::string, at::Tensor> shards;
  if (std::none_of(layers_.begin(), layers_.end(), is_gathered)) {
    return shards;
  }
  std::map<std::string, at::Tensor> all;
  for (const fsdp::ShardedParameter& parameter : fsdp::sharded_parameters(root_)) {
    all[parameter.fqn] = parameter.local;
  }
  for (const NamedLayer& layer : layers_) {
    if (is_gathered(layer)) {
      shards[layer.fqn] = all.at(layer.fqn + ".weight");
    }
  }
  return shards;
}

void Float8Training::agree(bool with_histories) {
  const c10::NoGradGuard no_grad;
  const std::map<std::string, at::Tensor> shards = gathered_weights();
  if (layers_.empty()) {
    return;
  }
  FlatAmaxes amaxes(device());
  std::vector<WeightGather*> weights;
  for (const NamedLayer& layer : layers_) {
    if (const auto shard = shards.find(layer.fqn); shard != shards.end()) {
      weights.push_back(layer.state->gather.get());
      amaxes.add("weight of " + layer.fqn, weights.back()->begin_agreement(shard->second));
    }
  }
  std::vector<AmaxHistory*> histories;
  for (const NamedOperand& operand : operands_) {
    if (with_histories && operand.operand->is_delayed()) {
      const at::Tensor amax = operand.operand->take_amax();
      histories.push_back(&operand.operand->history());
      amaxes.add(operand.name + " of " + operand.layer,
                 amax.defined() ? amax : at::zeros({1}, at::kFloat));
    }
  }
  amaxes.all_reduce(group());
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i]->end_agreement(amaxes[i]);
  }
  for (size_t i = 0; i < histories.size(); ++i) {
    histories[i]->push(amaxes.on_host(weights.size() + i).item<float>());
  }
  if (!histories.empty()) {
    move_scales(histories, device());
  }
}

void Float8Training::sample_health(bool enabled) {
  for (const NamedOperand& operand : operands_) {
    operand.operand->set_sampling(enabled);
  }
}

std::vector<NamedHealth> Float8Training::take_health() {
  const auto count = static_cast<int64_t>(operands_.size());
  const at::Tensor sums = at::zeros({count, 3}, at::kDouble);
  const at::Tensor extremes = at::zeros({count, 2}, at::kDouble);  // scale_max, -scale_min
  auto* sum = sums.mutable_data_ptr<double>();
  auto* extreme = extremes.mutable_data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) {
    const OperandHealth health = operands_[i].operand->take_health();
    sum[3 * i] = health.num_elements;
    sum[3 * i + 1] = health.num_saturated;
    sum[3 * i + 2] = health.num_underflowed;
    extreme[2 * i] = health.scale_max;
    extreme[2 * i + 1] = -health.scale_min;
  }
  if (count > 0 && mesh_.world().size() > 1) {
    mesh_.world().all_reduce(sums, comm::ReduceOp::kSum);
    mesh_.world().all_reduce(extremes, comm::ReduceOp::kMax);
  }
  std::vector<NamedHealth> all;
  for (int64_t i = 0; i < count; ++i) {
    if (sum[3 * i] > 0) {
      all.push_back(
          {operands_[i].layer,
           operands_[i].name,
           operands_[i].operand->is_delayed(),
           {sum[3 * i], sum[3 * i + 1], sum[3 * i + 2], -extreme[2 * i + 1], extreme[2 * i]}});
    }
  }
  return all;
}

std::vector<std::pair<std::string, at::Tensor>> Float8Training::named_buffers() {
  std::vector<std::pair<std::string, at::Tensor>> buffers;
  for (const NamedOperand& operand : operands_) {
    if (operand.operand->is_delayed()) {
      buffers.emplace_back(operand.layer + "." + operand.name + ".amax_history",
                           operand.operand->history().values());
    }
  }
  return buffers;
}

}  // namespace narrowgauge::float8
