#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace narrowgauge::nn {

// A module whose forward runs between hooks and whose parameters and children can be replaced in
// place.
//
// C++ libtorch has no forward hooks, and torch::nn::Module::replace_module leaves the parent's
// typed member pointing at the old child. A Layer therefore registers *slots*: the member variable
// itself, so that a replacement (a shard, a Float8Linear) reaches both the registry and the member
// that forward reads.
//
// A derived class defines its own call operator with the arguments it needs and runs its work
// through `hooked`; see Linear. Not thread-safe: one thread runs a layer.
class Layer : public torch::nn::Module {
 public:
  // Takes and returns the layer's first input (pre-hook) or its output (hook); may return it
  // unchanged.
  using Hook = std::function<at::Tensor(at::Tensor)>;
  // What a layer computes of its first input, between its hooks.
  using Forward = std::function<at::Tensor(const at::Tensor&)>;
  // Stands in for forward(input); see nn/activation_checkpoint.h. May keep a copy of `forward` and
  // call it again while the layer lives.
  using ForwardWrapper = std::function<at::Tensor(const at::Tensor& input, const Forward& forward)>;

  // Pre-hooks run in the order of registration, hooks likewise.
  void register_forward_pre_hook(Hook hook) { pre_hooks_.push_back(std::move(hook)); }
  void register_forward_hook(Hook hook) { hooks_.push_back(std::move(hook)); }

  // Hooks stay outside of the wrapper. Throws if there is one already.
  void wrap_forward(ForwardWrapper wrapper);

  // Makes `value` the parameter `name` of this layer, or of one below it ("mlp.down_proj.weight").
  // Any dtype, shape and device: this is the only way from meta to a real device, since
  // Tensor::set_data refuses it. Throws if there is none.
  void replace_parameter(const std::string& name, at::Tensor value);

  // Makes `value` the child `name`. Throws if there is none or if the slot's type does not fit.
  void replace_child(const std::string& name, const std::shared_ptr<Layer>& value);

  // Direct children in the order of registration.
  std::vector<std::pair<std::string, std::shared_ptr<Layer>>> child_layers() const;

 protected:
  // Pre-hooks, forward (or its wrapper), hooks. `forward` holds what it needs by value: a wrapper
  // may call it again after the layer's caller has returned.
  at::Tensor hooked(at::Tensor input, const Forward& forward);

  // Registers `slot` under `name`. REQUIRES: slot is a member of this object. An undefined `value`
  // (no bias) registers nothing.
  void add_parameter(const std::string& name, at::Tensor& slot, at::Tensor value);

  template <typename T>
  void add_child(const std::string& name, std::shared_ptr<T>& slot, std::shared_ptr<T> value) {
    slot = register_module(name, std::move(value));
    child_slots_[name] = [this, name, &slot](const std::shared_ptr<Layer>& replacement) {
      const auto typed = std::dynamic_pointer_cast<T>(replacement);
      if (typed) {
        slot = replace_module(name, typed);
      }
      return typed != nullptr;
    };
  }

 private:
  std::vector<Hook> pre_hooks_;
  std::vector<Hook> hooks_;
  ForwardWrapper wrapper_;  // usually none
  std::map<std::string, at::Tensor*> parameter_slots_;
  std::map<std::string, std::function<bool(const std::shared_ptr<Layer>&)>> child_slots_;
};

}  // namespace narrowgauge::nn
