#include "lora/adapter_dropout.h"

#include <utility>

namespace narrowgauge::lora {

AdapterDropout::AdapterDropout(double p, uint64_t seed, std::string_view linear,
                               std::shared_ptr<const BatchPosition> position)
    : p_(p), key_(nn::dropout_key(seed, linear)), position_(std::move(position)) {}

std::optional<nn::DropoutMask> AdapterDropout::mask(int64_t in_features) const {
  if (p_ == 0.0 || !position_->is_training) {
    return std::nullopt;
  }
  nn::DropoutMask mask;
  mask.p = p_;
  mask.key = key_;
  mask.step = position_->step;
  mask.first_element = position_->first_row * in_features;
  return mask;
}

}  // namespace narrowgauge::lora
