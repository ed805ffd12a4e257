#include "optim/optimizer_list.h"

#include <algorithm>
#include <utility>

namespace narrowgauge::optim {

OptimizerList::OptimizerList(std::vector<std::unique_ptr<Optimizer>> optimizers)
    : optimizers_(std::move(optimizers)) {}

void OptimizerList::step(double lr, double gradient_scale) {
  ++step_count_;
  for (const auto& optimizer : optimizers_) {
    optimizer->step(lr, gradient_scale);
  }
}

bool OptimizerList::communicates() const {
  return std::any_of(optimizers_.begin(), optimizers_.end(),
                     [](const auto& optimizer) { return optimizer->communicates(); });
}

void OptimizerList::zero_grad() {
  for (const auto& optimizer : optimizers_) {
    optimizer->zero_grad();
  }
}

std::vector<StateTensor> OptimizerList::state() {
  std::vector<StateTensor> all;
  for (const auto& optimizer : optimizers_) {
    for (StateTensor& state : optimizer->state()) {
      all.push_back(std::move(state));
    }
  }
  return all;
}

void OptimizerList::set_step_count(int64_t count) {
  for (const auto& optimizer : optimizers_) {
    optimizer->set_step_count(count);
  }
  step_count_ = count;
}

}  // namespace narrowgauge::optim
