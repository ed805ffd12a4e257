#include "optim/step_in_backward.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <c10/util/Exception.h>

#include <optional>
#include <utility>

namespace narrowgauge::optim {
namespace {

ParameterGroup group_of(GroupedParameter parameter) {
  return {{std::move(parameter.name)},
          {std::move(parameter.param)},
          parameter.lr_scale,
          parameter.weight_decay,
          {std::move(parameter.shard)}};
}

}  // namespace

StepInBackward::StepInBackward(std::vector<ParameterGroup> groups,
                               const MakeOptimizer& make_optimizer) {
  std::vector<ParameterGroup> waiting;
  for (GroupedParameter& parameter : flatten(std::move(groups))) {
    const std::string name = parameter.name;
    Slot slot{parameter.param, make_optimizer({group_of(parameter)})};
    if (slot.optimizer->communicates()) {
      waiting.push_back(group_of(std::move(parameter)));
    } else {
      names_.push_back(name);
      slots_.push_back(std::move(slot));
    }
  }
  if (!waiting.empty()) {
    rest_ = make_optimizer(std::move(waiting));
  }
}

void StepInBackward::begin_last_backward(double lr) {
  is_last_backward_ = true;
  lr_ = lr;
  norms_.clear();
}

void StepInBackward::gradient_ready(size_t index) {
  Slot& slot = slots_.at(index);
  const at::Tensor& gradient = slot.param.grad();
  if (!is_last_backward_ || !gradient.defined()) {
    return;
  }
  TORCH_CHECK(!slot.is_applied, "expected one complete gradient of '", names_[index],
              "' in a backward, got another; its layer must not run twice");
  const at::NoGradGuard no_grad;
  if (gradient.numel() > 0) {
    const bool is_narrow = gradient.scalar_type() == at::kBFloat16;
    norms_.push_back(at::linalg_vector_norm(
        gradient, 2.0, std::nullopt, false,
        is_narrow ? std::optional<at::ScalarType>(at::kFloat) : std::nullopt));
  }
  slot.optimizer->step(lr_);
  slot.optimizer->zero_grad();
  slot.is_applied = true;
}

void StepInBackward::step(double lr, double gradient_scale) {
  TORCH_CHECK(gradient_scale == 1.0,
              "expected no gradient scale with a step in backward, which has been, got ",
              gradient_scale);
  is_last_backward_ = false;
  ++step_count_;
  for (Slot& slot : slots_) {
    if (!std::exchange(slot.is_applied, false)) {
      slot.optimizer->step(lr);
    }
  }
  if (rest_) {
    rest_->step(lr);
  }
}

void StepInBackward::zero_grad() {
  for (Slot& slot : slots_) {
    slot.optimizer->zero_grad();
  }
  if (rest_) {
    rest_->zero_grad();
  }
}

std::vector<StateTensor> StepInBackward::state() {
  std::vector<StateTensor> all;
  const auto append = [&](Optimizer& optimizer) {
    for (StateTensor& state : optimizer.state()) {
      all.push_back(std::move(state));
    }
  };
  for (Slot& slot : slots_) {
    append(*slot.optimizer);
  }
  if (rest_) {
    append(*rest_);
  }
  return all;
}

void StepInBackward::set_step_count(int64_t count) {
  for (Slot& slot : slots_) {
    slot.optimizer->set_step_count(count);
  }
  if (rest_) {
    rest_->set_step_count(count);
  }
  step_count_ = count;
}

}  // namespace narrowgauge::optim
