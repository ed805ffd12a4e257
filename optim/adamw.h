#pragma once

#include <cstdint>
#include <vector>

#include "optim/adam_options.h"
#include "optim/kernels/adamw_cuda.h"
#include "optim/optimizer.h"
#include "optim/parameter_groups.h"

namespace narrowgauge::optim {

// AdamW (Loshchilov and Hutter 2019) on fp32 parameters:
//   p <- p (1 - lr wd);  m <- m + (1 - beta1)(g - m);  v <- beta2 v + (1 - beta2) g^2
//   p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// Adam where weight decay is not decoupled: g <- g + wd p in its place.
// Equal bit for bit to torch.optim.AdamW and Adam (fused=True) on one thread of a processor with
// FMA (torch 2.11's CPU kernel), and the same bits on any number of threads. Scaling the gradient
// while reading it gives the bits of multiplying it in place first, as clip_grad_norm_ does.
// On a GPU a kernel of ours gives the same bits.
class AdamW : public Optimizer {
 public:
  // Throws if a group's lists differ in length, a name repeats, a parameter is not contiguous
  // fp32, or an option is out of range.
  AdamW(std::vector<ParameterGroup> groups, AdamOptions options);

  // Moments of a parameter are made (zeros) when it first has a gradient; after that a step
  // allocates nothing. step_count counts calls, also for parameters without a gradient in some.
  void step(double lr, double gradient_scale = 1.0) override;
  void zero_grad() override;
  // "<parameter>.exp_avg" and "<parameter>.exp_avg_sq", in the order of the groups.
  std::vector<StateTensor> state() override;
  int64_t step_count() const override { return step_count_; }
  void set_step_count(int64_t count) override;

 private:
  struct Slot {
    GroupedParameter parameter;
    at::Tensor exp_avg;
    at::Tensor exp_avg_sq;
  };

  static void make_moments(Slot& slot);
  void step_on_cpu(Slot& slot, const at::Tensor& gradient, double lr, double gradient_scale);
  kernels::AdamWTensor device_update(const Slot& slot, const at::Tensor& gradient, double lr) const;

  std::vector<Slot> slots_;
  AdamOptions options_;
  int64_t step_count_ = 0;
};

}  // namespace narrowgauge::optim
