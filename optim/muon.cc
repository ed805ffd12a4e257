#include "optim/muon.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace narrowgauge::optim {
namespace {

constexpr double kA = 3.4445;
constexpr double kB = -4.7750;
constexpr double kC = 2.0315;

double cost(const std::vector<int64_t>& sizes) {
  const auto narrow = static_cast<double>(std::min(sizes[0], sizes[1]));
  return narrow * narrow * static_cast<double>(std::max(sizes[0], sizes[1]));
}

double adjustment(AdjustLr adjust_lr, const std::vector<int64_t>& sizes) {
  const auto rows = static_cast<double>(sizes[0]);
  const auto columns = static_cast<double>(sizes[1]);
  return adjust_lr == AdjustLr::kOriginal ? std::sqrt(std::max(1.0, rows / columns))
                                          : 0.2 * std::sqrt(std::max(rows, columns));
}

bool is_head(const std::string& name) {
  return name.find("lm_head") != std::string::npos || name == "output.weight";
}

}  // namespace

bool is_hidden_matrix(const std::string& name, const std::vector<int64_t>& global_sizes) {
  return global_sizes.size() == 2 && !is_embedding(name) && !is_head(name) &&
         !is_learned_range(name);
}

at::Tensor newton_schulz(const at::Tensor& update, int num_steps, double eps) {
  const bool is_tall = update.size(0) > update.size(1);
  at::Tensor x = is_tall ? update.t() : update;
  // At most 1 in the spectral norm.
  x = x.div(x.norm().clamp_min(eps));
  for (int i = 0; i < num_steps; ++i) {
    const at::Tensor gram = at::matmul(x, x.t());
    x = at::addmm(x, at::addmm(gram, gram, gram, kB, kC), x, kA);
  }
  return is_tall ? x.t() : x;
}

Muon::Muon(std::vector<ParameterGroup> groups, const MuonOptions& options,
           comm::Communicator* shard_axis)
    : options_(options), shard_axis_(shard_axis) {
  TORCH_CHECK(options.momentum >= 0 && options.momentum < 1, "expected 0 <= momentum < 1, got ",
              options.momentum);
  TORCH_CHECK(options.ns_steps >= 1 && options.ns_steps < 100, "expected 1 to 99 ns_steps, got ",
              options.ns_steps);
  if (shard_axis_ && shard_axis_->size() == 1) {
    shard_axis_ = nullptr;
  }
  for (GroupedParameter& parameter : flatten(std::move(groups))) {
    TORCH_CHECK(parameter.param.dim() == 2 && parameter.param.is_floating_point(),
                "expected Muon's parameters to be matrices, got '", parameter.name, "' with sizes ",
                parameter.param.sizes());
    const at::Tensor zeros = at::zeros_like(parameter.param.detach());
    slots_.push_back({std::move(parameter), zeros, {}});
  }
  std::stable_sort(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) {
    return cost(a.parameter.shard.global_sizes) > cost(b.parameter.shard.global_sizes);
  });
  exchange_rows();
}

void Muon::exchange_rows() {
  if (!shard_axis_) {
    return;
  }
  const auto count = static_cast<int64_t>(slots_.size());
  const at::Tensor mine = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    mine.mutable_data_ptr<int64_t>()[i] = slots_[static_cast<size_t>(i)].parameter.param.size(0);
  }
  const at::Tensor all = at::empty({shard_axis_->size(), count}, at::kLong);
  shard_axis_->all_gather(all, mine);
  for (int64_t rank = 0; rank < shard_axis_->size(); ++rank) {
    for (int64_t i = 0; i < count; ++i) {
      slots_[static_cast<size_t>(i)].rows.push_back(
          all.const_data_ptr<int64_t>()[rank * count + i]);
    }
  }
}

std::vector<size_t> Muon::slots_with_gradient() const {
  const auto count = static_cast<int64_t>(slots_.size());
  const at::Tensor has = at::zeros({count}, at::kInt);
  for (size_t i = 0; i < slots_.size(); ++i) {
    has.mutable_data_ptr<int32_t>()[i] = slots_[i].parameter.param.grad().defined() ? 1 : 0;
  }
  if (shard_axis_ && count > 0) {
    shard_axis_->all_reduce(has, comm::ReduceOp::kMax);
  }
  std::vector<size_t> slots;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (has.const_data_ptr<int32_t>()[i] != 0) {
      slots.push_back(i);
    }
  }
  return slots;
}

void Muon::step(double lr, double gradient_scale) {
  const at::NoGradGuard no_grad;
  ++step_count_;
  const std::vector<size_t> slots = slots_with_gradient();
  const size_t num_ranks = shard_axis_ ? static_cast<size_t>(shard_axis_->size()) : 1;
  for (size_t begin = 0; begin < slots.size(); begin += num_ranks) {
    const size_t end = std::min(slots.size(), begin + num_ranks);
    step_round(
        {slots.begin() + static_cast<int64_t>(begin), slots.begin() + static_cast<int64_t>(end)},
        lr, gradient_scale);
  }
}

void Muon::step_round(const std::vector<size_t>& round, double lr, double gradient_scale) {
  if (!shard_axis_) {
    Slot& slot = slots_[round[0]];
    apply(slot, newton_schulz(local_update(slot, gradient_scale), options_.ns_steps, options_.eps),
          lr);
    return;
  }
  const auto rank = static_cast<size_t>(shard_axis_->rank());
  at::Tensor mine;
  for (size_t turn = 0; turn < round.size(); ++turn) {
    Slot& slot = slots_[round[turn]];
    const at::Tensor whole = gather(slot, local_update(slot, gradient_scale), turn == rank);
    mine = turn == rank ? whole : mine;
  }
  if (mine.defined()) {
    mine = newton_schulz(mine, options_.ns_steps, options_.eps).contiguous();
  }
  for (size_t turn = 0; turn < round.size(); ++turn) {
    Slot& slot = slots_[round[turn]];
    const at::TensorOptions bf16 = slot.parameter.param.options().dtype(at::kBFloat16);
    const at::Tensor whole =
        turn == rank ? mine
                     : at::empty(slot.parameter.shard.global_sizes, bf16.requires_grad(false));
    shard_axis_->broadcast(whole, static_cast<int>(turn));
    apply(slot, whole.narrow(0, slot.parameter.shard.row_begin, slot.parameter.param.size(0)), lr);
  }
}

at::Tensor Muon::local_update(Slot& slot, double gradient_scale) const {
  const at::Tensor& param = slot.parameter.param;
  const at::Tensor& grad = param.grad();
  TORCH_CHECK(grad.defined() || param.numel() == 0, "expected a gradient of '", slot.parameter.name,
              "' on this rank, since another one has it");
  if (!grad.defined()) {
    return at::zeros_like(slot.momentum_buffer, at::kBFloat16);
  }
  const at::Tensor wide = grad.to(slot.momentum_buffer.scalar_type());
  const at::Tensor gradient = gradient_scale == 1.0 ? wide : wide.mul(gradient_scale);
  slot.momentum_buffer.lerp_(gradient, 1.0 - options_.momentum);
  const at::Tensor update = options_.nesterov
                                ? gradient.lerp(slot.momentum_buffer, options_.momentum)
                                : slot.momentum_buffer;
  return update.to(at::kBFloat16);
}

at::Tensor Muon::gather(const Slot& slot, const at::Tensor& local, bool keep) const {
  const int64_t columns = local.size(1);
  const int64_t padded = *std::max_element(slot.rows.begin(), slot.rows.end());
  const at::Tensor input = at::zeros({padded, columns}, local.options());
  input.narrow(0, 0, local.size(0)).copy_(local);
  const at::Tensor output = at::empty({shard_axis_->size() * padded, columns}, local.options());
  shard_axis_->all_gather(output, input);
  if (!keep) {
    return {};
  }
  std::vector<at::Tensor> parts;
  for (size_t rank = 0; rank < slot.rows.size(); ++rank) {
    parts.push_back(output.narrow(0, static_cast<int64_t>(rank) * padded, slot.rows[rank]));
  }
  return at::cat(parts);
}

void Muon::apply(Slot& slot, const at::Tensor& rows, double lr) const {
  const GroupedParameter& parameter = slot.parameter;
  const double scaled = lr * parameter.lr_scale;
  const at::Tensor param = parameter.param.detach();
  param.mul_(1.0 - scaled * parameter.weight_decay);
  param.add_(rows, -scaled * adjustment(options_.adjust_lr, parameter.shard.global_sizes));
}

void Muon::zero_grad() {
  for (Slot& slot : slots_) {
    slot.parameter.param.mutable_grad() = at::Tensor();
  }
}

std::vector<StateTensor> Muon::state() {
  std::vector<StateTensor> state;
  for (const Slot& slot : slots_) {
    const GroupedParameter& parameter = slot.parameter;
    state.push_back({parameter.name + ".momentum_buffer", slot.momentum_buffer,
                     parameter.shard.global_sizes, parameter.shard.row_begin});
  }
  return state;
}

void Muon::set_step_count(int64_t count) {
  TORCH_CHECK(count >= 0, "expected a step count >= 0, got ", count);
  step_count_ = count;
}

}  // namespace narrowgauge::optim
