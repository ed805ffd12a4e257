#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace narrowgauge::optim {

// Which rows of a whole parameter a rank holds: its elements are
// [row_begin * elements of a row, + numel of the shard) of the whole, flattened.
struct ParameterShard {
  std::vector<int64_t> global_sizes;
  int64_t row_begin = 0;
};

// Parameters that share a learning-rate scale and a weight decay.
struct ParameterGroup {
  std::vector<std::string> names;  // fully qualified; unique over all groups
  std::vector<at::Tensor> params;  // one for each name
  double lr_scale = 1.0;           // multiplies the lr given to step
  double weight_decay = 0.0;
  std::vector<ParameterShard> shards = {};  // one for each name; empty: the params are whole
};

// A tensor of the optimizer's state as a checkpoint sees it: rows of a whole tensor.
struct StateTensor {
  std::string name;  // "<parameter>.<state>"
  at::Tensor local;  // [rows here, global_sizes[1:]...]; aliases the optimizer's own
  std::vector<int64_t> global_sizes;
  int64_t row_begin = 0;
  // Leading rows of `local` that the rank before holds, too: it is the one to save them.
  int64_t num_shared_rows = 0;
};

// Updates parameters in place from their .grad(). Not thread-safe.
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // One update. gradient_scale multiplies every gradient as it is read (1 / loss scale, the
  // clipping coefficient); the gradients themselves keep their values. A parameter without a
  // gradient is left alone. May be collective over the ranks that share the parameters.
  virtual void step(double lr, double gradient_scale = 1.0) = 0;

  // Whether step is collective.
  virtual bool communicates() const { return false; }

  // The last backward before step(lr) begins. Some optimizers apply gradients in it as they become
  // complete (StepInBackward); the norms of those, 0-dim, are all that is left of them until the
  // next call.
  virtual void begin_last_backward(double /*lr*/) {}
  virtual std::vector<at::Tensor> applied_gradient_norms() { return {}; }

  // Drops the gradients (set to undefined, as torch does by default).
  virtual void zero_grad() = 0;

  // What a checkpoint must hold. Loading is copy_ into the tensors. State that does not exist yet
  // is created.
  virtual std::vector<StateTensor> state() = 0;

  // Number of updates done; a checkpoint holds it beside state().
  virtual int64_t step_count() const = 0;
  virtual void set_step_count(int64_t count) = 0;
};

}  // namespace narrowgauge::optim
