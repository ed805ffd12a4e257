#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "nn/dropout.h"

namespace narrowgauge::lora {

// What the next forwards of a model, and their backwards, compute on: rows, one a token, of the
// global batch of a step. The loop over steps sets it. Without training nothing is dropped.
struct BatchPosition {
  bool is_training = false;
  int64_t step = 0;
  int64_t first_row = 0;
};

// Dropout of one adapter's input, as the peft library's lora_dropout. An element's mask is a
// function of (seed, linear, step, row of the global batch, column): how ranks and micro-batches
// share the rows does not change it, and a recomputed forward draws it again.
class AdapterDropout {
 public:
  // Drops nothing.
  AdapterDropout() = default;
  // linear: its name in the model.
  AdapterDropout(double p, uint64_t seed, std::string_view linear,
                 std::shared_ptr<const BatchPosition> position);

  // That of the forward at hand, whose input has this many columns; nothing where it drops nothing.
  std::optional<nn::DropoutMask> mask(int64_t in_features) const;

 private:
  double p_ = 0.0;
  uint64_t key_ = 0;
  std::shared_ptr<const BatchPosition> position_;
};

}  // namespace narrowgauge::lora
