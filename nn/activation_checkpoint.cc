#include "nn/activation_checkpoint.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "nn/rms_norm.h"
#include "nn/swiglu.h"

namespace narrowgauge::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// ---- Random numbers ---------------------------------------------------------------------------

// A default generator and its state at some moment.
struct GeneratorState {
  at::Generator generator;
  at::Tensor state;  // bytes on the CPU
};

at::Tensor state_of(at::Generator& generator) {
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

void restore(std::vector<GeneratorState>& states) {
  for (GeneratorState& each : states) {
    const std::lock_guard lock(each.generator.mutex());
    each.generator.set_state(each.state);
  }
}

// Those that a layer on `device` may draw from.
std::vector<GeneratorState> generator_states(at::Device device) {
  std::vector<GeneratorState> states;
  const auto add = [&](at::Device of) {
    at::Generator generator = at::globalContext().defaultGenerator(of);
    states.push_back({generator, state_of(generator)});
  };
  add(at::kCPU);
  if (!device.is_cpu() && !device.is_meta()) {
    add(device);
  }
  return states;
}

void keep_those_that_moved(std::vector<GeneratorState>& states) {
  states.erase(std::remove_if(states.begin(), states.end(),
                              [](GeneratorState& each) {
                                return at::equal(each.state, state_of(each.generator));
                              }),
               states.end());
}

// Winds generators back while it lives.
class Rewind {
 public:
  explicit Rewind(std::vector<GeneratorState>& states) {
    for (GeneratorState& each : states) {
      now_.push_back({each.generator, state_of(each.generator)});
    }
    restore(states);
  }
  ~Rewind() { restore(now_); }
  Rewind(const Rewind&) = delete;
  Rewind& operator=(const Rewind&) = delete;

 private:
  std::vector<GeneratorState> now_;
};

// ---- A whole forward --------------------------------------------------------------------------

// What backward needs to run a forward again, beside its input.
struct Region : torch::CustomClassHolder {
  Layer::Forward forward;
  std::vector<GeneratorState> drawn_from;  // as they were before; those that forward did not move
                                           // are left out, usually all
};

struct Recompute : torch::autograd::Function<Recompute> {
  // anchor: makes the output require a gradient where the input does not but a parameter does.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& /*anchor*/, const Layer::Forward& layer_forward) {
    auto region = c10::make_intrusive<Region>();
    region->drawn_from = generator_states(input.device());
    const at::Tensor output = layer_forward(input);
    keep_those_that_moved(region->drawn_from);
    region->forward = layer_forward;
    context->save_for_backward({input});
    context->saved_data["region"] = c10::IValue::make_capsule(std::move(region));
    context->set_materialize_grads(false);
    return output;
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!c10::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; a recomputed layer is "
                "differentiable once");
    TORCH_CHECK(torch::autograd::Engine::get_default_engine().is_checkpoint_valid(),
                "expected backward() into all leaves, got autograd::grad or backward(inputs); a "
                "recomputed layer adds to its parameters' .grad, so use backward() or no "
                "activation checkpointing");
    if (!grads[0].defined()) {
      return {at::Tensor(), at::Tensor(), at::Tensor()};
    }
    const at::Tensor saved = context->get_saved_variables()[0];
    const auto capsule = context->saved_data.at("region").toCapsule();
    at::Tensor input = saved.detach();
    input.set_requires_grad(saved.requires_grad());
    const at::Tensor output = run_again(static_cast<Region&>(*capsule), input);
    TORCH_CHECK(output.sizes() == grads[0].sizes(), "expected a recomputation to repeat forward, ",
                "got an output of sizes ", output.sizes(), " after ", grads[0].sizes(),
                "; a checkpointed layer must depend on its input alone");
    if (output.requires_grad()) {
      output.backward(grads[0]);
    }
    return {std::move(input.mutable_grad()), at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor run_again(Region& region, const at::Tensor& input) {
    const Rewind rewind(region.drawn_from);
    const c10::AutoGradMode with_graph(true);
    return region.forward(input);
  }
};

bool has_trainable_parameter(const Layer& layer) {
  const auto parameters = layer.parameters();
  return std::any_of(parameters.begin(), parameters.end(),
                     [](const at::Tensor& parameter) { return parameter.requires_grad(); });
}

// ---- One output -------------------------------------------------------------------------------

// A tensor on its way from the layer that made it to the one that uses it.
struct Passing {
  at::Tensor input;  // what it can be computed from
  at::Tensor output;
};

// An output without memory, until refilled.
class Discarded {
 public:
  Discarded(Passing passing, Layer::Forward forward)
      : forward_(std::move(forward)),
        input_(std::move(passing.input)),
        storage_(passing.output.storage().getWeakStorageImpl()),
        size_bytes_(passing.output.storage().nbytes()) {
    const c10::Storage& storage = passing.output.storage();
    storage.set_data_ptr_noswap(storage.allocator()->allocate(0));
    storage.set_nbytes(0);
  }

  // Once: a graph that is kept for another backward keeps the refilled memory too. Forgets the
  // input, which the graph would otherwise hold as long as it lives itself.
  void refill() {
    TORCH_CHECK(
        !c10::GradMode::is_enabled(),
        "expected a first derivative, got create_graph; activation checkpointing recomputes "
        "for one");
    const at::Tensor input = std::exchange(input_, at::Tensor());
    const auto storage = storage_.lock();
    if (!input.defined() || !storage) {  // refilled already, or nobody has saved it
      return;
    }
    const at::Tensor again = forward_(input.detach());
    TORCH_CHECK(again.storage().nbytes() == size_bytes_,
                "expected a recomputation to repeat forward, got ", again.storage().nbytes(),
                " bytes after ", size_bytes_);
    storage->set_nbytes(size_bytes_);
    storage->set_data_ptr_noswap(again.storage().set_data_ptr(at::DataPtr()));
  }

 private:
  Layer::Forward forward_;
  at::Tensor input_;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;  // the consumer's node has saved it, or not
  size_t size_bytes_;
};

void discard_until_backward(Passing passing, const Layer::Forward& forward,
                            const at::Tensor& consumer_output) {
  if (!c10::GradMode::is_enabled() || !consumer_output.requires_grad() ||
      passing.output.is_alias_of(passing.input) || passing.output.is_alias_of(consumer_output)) {
    return;
  }
  const auto discarded = std::make_shared<Discarded>(std::move(passing), forward);
  consumer_output.register_hook([discarded](const at::Tensor&) { discarded->refill(); });
}

std::shared_ptr<Passing> watch(Layer& producer) {
  const auto passing = std::make_shared<Passing>();
  producer.register_forward_pre_hook([passing](at::Tensor input) {
    passing->input = input;
    return input;
  });
  producer.register_forward_hook([passing](at::Tensor output) {
    passing->output = output;
    return output;
  });
  return passing;
}

void discard_behind(const std::shared_ptr<Passing>& passing, Layer::Forward forward,
                    Layer& consumer) {
  consumer.register_forward_hook([passing, forward = std::move(forward)](at::Tensor output) {
    discard_until_backward(std::exchange(*passing, {}), forward, output);
    return output;
  });
}

// The norm must be alive in backward; the block that both belong to is.
void recompute_norm(RMSNorm& norm, Layer& consumer) {
  const auto passing = watch(norm);
  norm.register_sum_hook([passing](const at::Tensor& sum) { passing->input = sum; });
  discard_behind(
      passing, [&norm](const at::Tensor& x) { return rms_norm(x, norm.weight, norm.eps); },
      consumer);
}

void recompute_between_products(TransformerBlock& block) {
  recompute_norm(*block.input_layernorm, *block.self_attn->qkv_proj);
  recompute_norm(*block.post_attention_layernorm, *block.mlp->gate_up_proj);
  recompute_output(
      *block.mlp->act_fn, [](const at::Tensor& x) { return swiglu(x); }, *block.mlp->down_proj);
}

}  // namespace

void apply_activation_checkpoint(Transformer& model, const ActivationCheckpoint& options) {
  TORCH_CHECK(options.every_nth_block >= 1, "expected every_nth_block of at least 1, got ",
              options.every_nth_block);
  if (options.mode == CheckpointMode::kNone) {
    return;
  }
  for (size_t i = options.every_nth_block - 1; i < model.layers.size();
       i += options.every_nth_block) {
    if (options.mode == CheckpointMode::kFull) {
      recompute_forward(*model.layers[i]);
    } else {
      recompute_between_products(*model.layers[i]);
    }
  }
}

void recompute_forward(Layer& layer) {
  layer.wrap_forward([&layer](const at::Tensor& input, const Layer::Forward& forward) {
    if (!c10::GradMode::is_enabled() ||
        !(input.requires_grad() || has_trainable_parameter(layer))) {
      return forward(input);
    }
    return Recompute::apply(input, at::empty({0}).set_requires_grad(true), forward);
  });
}

void recompute_output(Layer& producer, Layer::Forward forward, Layer& consumer) {
  discard_behind(watch(producer), std::move(forward), consumer);
}

}  // namespace narrowgauge::nn
