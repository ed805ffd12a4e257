#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "export/export_model.h"

namespace narrowgauge::trainer {

// How far logits are apart.
struct LogitsDifference {
  double largest = 0;       // max |a - b|
  double scale = 0;         // max |a|
  int64_t same_argmax = 0;  // of `tokens`
  int64_t tokens = 0;
};
LogitsDifference compare_logits(const at::Tensor& a, const at::Tensor& b);

// Logits [tokens, vocab_size] in fp32 of a model with these weights, computing in `dtype`, on
// `tokens` ids that follow from the shape alone. Inputs of linears are not quantized.
at::Tensor logits_of(const nn::TransformerConfig& config, const exports::TensorReader& weights,
                     at::ScalarType dtype, int64_t tokens);

}  // namespace narrowgauge::trainer
