#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/device_mesh.h"
#include "float8/float8_linear.h"
#include "float8/operand.h"
#include "nn/layer.h"

namespace narrowgauge::float8 {

// One operand of one layer, in words.
struct NamedHealth {
  std::string layer;    // its name from the root
  std::string operand;  // input, weight or grad_output
  bool is_delayed = false;
  OperandHealth health;
};

// What fp8 needs of a training loop beside the layers themselves: agreement between ranks after
// each optimizer step, state for checkpoints, samples of health. Every rank of the mesh makes one
// of the same model, converted and sharded (or neither sharded nor on more than one rank), and
// calls the same methods in the same order.
class Float8Training {
 public:
  // Keeps `root` by reference. Does nothing for a model without Float8Linears.
  Float8Training(nn::Layer& root, comm::DeviceMesh mesh);

  // Call when parameters have changed otherwise than by a step: materialized, loaded (after
  // named_buffers were). Collective.
  void refresh();

  // Call after each optimizer step. One all-reduce for the whole model, of the amaxes that ranks
  // must share: of delayed operands, which then enter the history, and of the new weights that
  // travel in fp8 (torchao's precompute_float8_dynamic_scale_for_fsdp). None if there are none.
  // Throws c10::Error, on every rank, naming the layer and the operand, if one of them is NaN or
  // infinite: delayed scaling would hide it by saturating, and no later step could be trusted.
  void after_optimizer_step();

  // Casts in training add to the health of their operands from now on, or no longer.
  void sample_health(bool enabled);
  // What was sampled since the last call, summed over all ranks, in model order; operands without
  // a cast are left out. Collective.
  std::vector<NamedHealth> take_health();

  // The state a checkpoint must hold: "<layer>.<operand>.amax_history", fp32 [length], equal on all
  // ranks. Aliases; after copying into them call refresh.
  std::vector<std::pair<std::string, at::Tensor>> named_buffers();

  size_t num_layers() const { return layers_.size(); }

 private:
  struct NamedOperand {
    std::string layer;
    std::string name;
    Operand* operand;
  };
  struct NamedLayer {
    std::string fqn;
    std::shared_ptr<Float8LinearState> state;
  };
  void find_layers(const nn::Layer& layer, const std::string& prefix);
  // Agrees on the scales of weights and, where `with_histories`, ends a step for the histories.
  void agree(bool with_histories);
  // The local rows of the weights that are gathered, by the layer's name.
  std::map<std::string, at::Tensor> gathered_weights() const;
  comm::Communicator& group() const;
  // Of the computation.
  at::Device device() const;

  nn::Layer& root_;
  comm::DeviceMesh mesh_;
  std::vector<NamedLayer> layers_;
  std::vector<NamedOperand> operands_;
  bool uses_delayed_scaling_ = false;
};

}  // namespace narrowgauge::float8
