#pragma once

#include <memory>
#include <vector>

#include "optim/optimizer.h"

namespace narrowgauge::optim {

// Several optimizers, each with parameters of its own, that step as one.
class OptimizerList : public Optimizer {
 public:
  explicit OptimizerList(std::vector<std::unique_ptr<Optimizer>> optimizers);

  void step(double lr, double gradient_scale = 1.0) override;
  bool communicates() const override;
  void zero_grad() override;
  std::vector<StateTensor> state() override;
  int64_t step_count() const override { return step_count_; }
  void set_step_count(int64_t count) override;

 private:
  std::vector<std::unique_ptr<Optimizer>> optimizers_;
  int64_t step_count_ = 0;
};

}  // namespace narrowgauge::optim
