#include "nn/layer.h"

#include <c10/util/Exception.h>

namespace narrowgauge::nn {

void Layer::replace_parameter(const std::string& name, at::Tensor value) {
  if (const size_t dot = name.find('.'); dot != std::string::npos) {
    const auto children = named_children();
    const auto* child = children.find(name.substr(0, dot));
    auto* layer = child != nullptr ? dynamic_cast<Layer*>(child->get()) : nullptr;
    TORCH_CHECK(layer != nullptr, "expected a parameter below ", this->name(), ", got '", name,
                "'");
    layer->replace_parameter(name.substr(dot + 1), std::move(value));
    return;
  }
  const auto slot = parameter_slots_.find(name);
  TORCH_CHECK(slot != parameter_slots_.end(), "expected a parameter of ", this->name(), ", got '",
              name, "'");
  parameters_[name] = value;
  *slot->second = std::move(value);
}

void Layer::replace_child(const std::string& name, const std::shared_ptr<Layer>& value) {
  const auto slot = child_slots_.find(name);
  TORCH_CHECK(slot != child_slots_.end(), "expected a child of ", this->name(), ", got '", name,
              "'");
  TORCH_CHECK(slot->second(value), "child '", name, "' of ", this->name(), " can not be a ",
              value->name());
}

std::vector<std::pair<std::string, std::shared_ptr<Layer>>> Layer::child_layers() const {
  std::vector<std::pair<std::string, std::shared_ptr<Layer>>> layers;
  for (const auto& child : named_children()) {
    if (auto layer = std::dynamic_pointer_cast<Layer>(child.value())) {
      layers.emplace_back(child.key(), std::move(layer));
    }
  }
  return layers;
}

void Layer::wrap_forward(ForwardWrapper wrapper) {
  TORCH_CHECK(!wrapper_, "expected a layer whose forward is not wrapped yet, got ", name(),
              " twice; apply activation checkpointing once");
  wrapper_ = std::move(wrapper);
}

at::Tensor Layer::hooked(at::Tensor input, const Forward& forward) {
  for (const Hook& hook : pre_hooks_) {
    input = hook(std::move(input));
  }
  at::Tensor output = wrapper_ ? wrapper_(input, forward) : forward(input);
  for (const Hook& hook : hooks_) {
    output = hook(std::move(output));
  }
  return output;
}

void Layer::add_parameter(const std::string& name, at::Tensor& slot, at::Tensor value) {
  if (!value.defined()) {
    return;
  }
  const bool trainable = value.is_floating_point();  // codes of a quantized weight are not
  slot = register_parameter(name, std::move(value), trainable);
  parameter_slots_[name] = &slot;
}

}  // namespace narrowgauge::nn
