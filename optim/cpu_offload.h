#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "optim/optimizer.h"
#include "optim/parameter_groups.h"

namespace narrowgauge::optim {

// Keeps the optimizer's state, and a copy of each parameter that it updates, in (pinned) memory of
// the CPU, where the step runs too. The device holds parameters and gradients only.
//
// A step starts all copies of gradients at once on a stream of its own and then, parameter by
// parameter, waits for its gradient, steps, and starts the copy back; copies and steps overlap.
// Gradients are read in step() and not before, so accumulation and clipping (gradient_scale) work
// as without offloading, and so does any number of ranks, each with its shards.
class CpuOffload : public Optimizer {
 public:
  // Makes the optimizer of one parameter of the CPU. Called for each in turn, in the same order on
  // every rank, so it may be collective.
  using MakeOptimizer = std::function<std::unique_ptr<Optimizer>(ParameterGroup)>;

  CpuOffload(std::vector<ParameterGroup> groups, const MakeOptimizer& make_optimizer);
  ~CpuOffload() override;

  // Returns when the last step on the CPU is done; the device's current stream waits for the
  // parameters.
  void step(double lr, double gradient_scale = 1.0) override;
  bool communicates() const override;
  void zero_grad() override;
  std::vector<StateTensor> state() override;
  int64_t step_count() const override { return step_count_; }
  void set_step_count(int64_t count) override;

 private:
  struct Slot {
    at::Tensor param;          // on the device
    at::Tensor host_param;     // the copy that the optimizer updates
    at::Tensor host_gradient;  // in the gradient's dtype; made at the first step
    int64_t version = -1;      // of `param` when host_param was last equal to it
    std::unique_ptr<Optimizer> optimizer;
  };
  class CopyStream;

  void refresh(Slot& slot) const;

  std::vector<Slot> slots_;
  std::unique_ptr<CopyStream> copies_;
  int64_t step_count_ = 0;
};

}  // namespace narrowgauge::optim
