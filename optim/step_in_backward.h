#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "optim/optimizer.h"
#include "optim/parameter_groups.h"

namespace narrowgauge::optim {

// Applies each gradient as soon as it is complete and drops it, so that a backward never holds all
// of them: torchtitan's early_step_in_backward. Bit for bit what one step after backward does.
//
// Nothing of a step is known before it is applied, neither the norm of all gradients nor whether
// they are finite, so there is no clipping: gradient_scale is 1. Updates that communicate (a
// low-bit block that a shard boundary cuts) wait for step(): in backward their collectives would
// meet those that gather and reduce. Which ones these are is the same on every rank.
class StepInBackward : public Optimizer {
 public:
  // Makes the optimizer of some parameters. Called for each in turn, then for those that wait, in
  // the same order on every rank, so it may be collective.
  using MakeOptimizer = std::function<std::unique_ptr<Optimizer>(std::vector<ParameterGroup>)>;

  StepInBackward(std::vector<ParameterGroup> groups, const MakeOptimizer& make_optimizer);

  // Parameters that can be applied in backward; the others wait.
  const std::vector<std::string>& names() const { return names_; }
  // The gradient of names()[index] is complete, maybe not for the last time: it is applied if
  // begin_last_backward was called since the last step.
  void gradient_ready(size_t index);

  void begin_last_backward(double lr) override;
  std::vector<at::Tensor> applied_gradient_norms() override { return norms_; }
  // What backward has not applied. Throws c10::Error unless gradient_scale is 1.
  void step(double lr, double gradient_scale = 1.0) override;
  void zero_grad() override;
  std::vector<StateTensor> state() override;
  int64_t step_count() const override { return step_count_; }
  void set_step_count(int64_t count) override;

 private:
  struct Slot {
    at::Tensor param;
    std::unique_ptr<Optimizer> optimizer;
    bool is_applied = false;  // in this step
  };

  std::vector<std::string> names_;
  std::vector<Slot> slots_;          // one for each name
  std::unique_ptr<Optimizer> rest_;  // of those that wait; null if there are none
  std::vector<at::Tensor> norms_;    // of gradients applied in this step, 0-dim
  bool is_last_backward_ = false;
  double lr_ = 0.0;
  int64_t step_count_ = 0;
};

}  // namespace narrowgauge::optim
