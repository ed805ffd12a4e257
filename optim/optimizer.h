#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace narrowgauge::optim {

// Parameters that share a learning-rate scale and a weight decay.
struct ParameterGroup {
  std::vector<std::string> names;  // fully qualified; unique over all groups
  std::vector<at::Tensor> params;  // one for each name
  double lr_scale = 1.0;           // multiplies the lr given to step
  double weight_decay = 0.0;
};

// Updates parameters in place from their .grad(). Not thread-safe.
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // One update. gradient_scale multiplies every gradient as it is read (1 / loss scale, the
  // clipping coefficient); the gradients themselves keep their values. A parameter without a
  // gradient is left alone.
  virtual void step(double lr, double gradient_scale = 1.0) = 0;

  // Drops the gradients (set to undefined, as torch does by default).
  virtual void zero_grad() = 0;

  // Tensors that a checkpoint must hold, by name: "<parameter>.<state>". They alias the optimizer's
  // own, so that loading is copy_ into them. State that does not exist yet is created.
  virtual std::vector<std::pair<std::string, at::Tensor>> state() = 0;

  // Number of updates done; a checkpoint holds it beside state().
  virtual int64_t step_count() const = 0;
  virtual void set_step_count(int64_t count) = 0;
};

}  // namespace narrowgauge::optim
