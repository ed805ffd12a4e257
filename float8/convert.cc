#include "float8/convert.h"

#include <set>
#include <string>

#include "float8/float8_linear.h"
#include "nn/gated_activation.h"

namespace narrowgauge::float8 {
namespace {

bool follows_tensor(const CastConfig& cast) {
  return cast.scaling_type == ScalingType::kDynamic &&
         cast.spec.granularity == ScalingGranularity::kTensorwise;
}

// A pass over memory less for the linears on either side of an activation: see nn/known_amax.h.
void set_with_amax(nn::Layer& layer, bool with_amax) {
  for (const auto& [name, child] : layer.child_layers()) {
    if (auto* activation = dynamic_cast<nn::GatedActivation*>(child.get())) {
      activation->set_with_amax(with_amax);
    }
    set_with_amax(*child, with_amax);
  }
}

}  // namespace

int64_t convert_to_float8_training(nn::Layer& root, const Float8LinearConfig& config,
                                   const nn::LinearFilter& filter) {
  check_config(config);
  const auto accepts = [&](const nn::Linear& linear, std::string_view fqn) {
    const bool is_plain = dynamic_cast<const Float8Linear*>(&linear) == nullptr;
    return is_plain && (!filter || filter(linear, fqn));
  };
  set_with_amax(root, follows_tensor(config.cast_config_input) &&
                          follows_tensor(config.cast_config_grad_output));
  return nn::swap_linear(root, accepts, [&](const nn::Linear& linear) {
    return std::make_shared<Float8Linear>(linear, config);
  });
}

int64_t convert_to_float8_training(nn::Layer& root, const Float8LinearConfig& config,
                                   const std::vector<LinearDecision>& decisions) {
  std::set<std::string, std::less<>> names;
  for (const LinearDecision& decision : decisions) {
    if (decision.converted) {
      names.insert(decision.fqn);
    }
  }
  return convert_to_float8_training(
      root, config, [&](const nn::Linear&, std::string_view fqn) { return names.contains(fqn); });
}

int64_t convert_to_linear(nn::Layer& root) {
  const auto is_float8 = [](const nn::Linear& linear, std::string_view) {
    return dynamic_cast<const Float8Linear*>(&linear) != nullptr;
  };
  set_with_amax(root, false);
  return nn::swap_linear(root, is_float8, [](const nn::Linear& linear) {
    return std::make_shared<nn::Linear>(linear);
  });
}

}  // namespace narrowgauge::float8
