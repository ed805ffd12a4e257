#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "nn/transformer.h"
#include "quantization/input_statistics.h"
#include "quantization/quantized_model.h"
#include "quantization/scheme.h"

// Note: post-training quantization block by block
//
// A model is quantized from its first block to its last. A block sees the calibration text as the
// already quantized blocks before it pass it on, so later weights make up for earlier errors. In
// memory are one block's weights, the text's activations between two blocks, and what is known of
// the inputs of one block's linears.

namespace narrowgauge::quantization {

enum class Method {
  kRoundToNearest,
  kHqq,
  kGptq,
  kAwq,
  kSmoothQuant,
};

// Whether the method looks at calibration text.
bool needs_calibration(Method method);

// The scheme of a linear, by its fused name in our model (layers.0.self_attn.qkv_proj); nothing:
// left as it is. weight: [out, in]. inputs is null without calibration.
using SchemeChoice = std::function<std::optional<Scheme>(
    const std::string& name, const at::Tensor& weight, const InputStatistics* inputs)>;

struct PostTrainingOptions {
  Method method = Method::kRoundToNearest;
  SchemeChoice scheme;
  bool act_order = false;     // GPTQ
  double smooth_alpha = 0.5;  // SmoothQuant
};

// The calibration text between two blocks.
struct CalibrationState {
  std::vector<at::Tensor> activations;  // [batch, t, dim] each; empty without calibration
  nn::AttentionContext context;         // the rotary table; no cache
};

// What the linears of a block read, by their names in the block ("self_attn.qkv_proj").
using BlockInputs = std::map<std::string, InputStatistics>;

// Of block `layer` on what state.activations holds, none if that is empty. The block stays as it
// is.
BlockInputs observe_inputs(nn::TransformerBlock& block, const nn::TransformerConfig& config,
                           int64_t layer, const CalibrationState& state);

// Quantizes block `layer`, whose weights are real and in `dtype` of the stored model, on what
// state.activations holds. Returns its linears and all its other parameters under their Hugging
// Face names. Changes the block's parameters where AWQ and SmoothQuant move channel sizes into
// norms and other linears. Runs without gradients.
QuantizedModel quantize_block(nn::TransformerBlock& block, const nn::TransformerConfig& config,
                              int64_t layer, const CalibrationState& state,
                              const PostTrainingOptions& options);

// Gives the block the values that `part`, quantize_block's result or the same read from disk,
// stands for.
void apply_to_block(nn::TransformerBlock& block, const nn::TransformerConfig& config, int64_t layer,
                    const QuantizedModel& part);

// Replaces the activations by the block's outputs.
void advance(nn::TransformerBlock& block, CalibrationState& state);

// The weight of a linear outside of the blocks, in its pieces by Hugging Face module name.
void quantize_linear(const nn::TransformerConfig& config, const std::string& name,
                     const at::Tensor& weight, const InputStatistics* inputs,
                     const PostTrainingOptions& options, QuantizedModel& into);

}  // namespace narrowgauge::quantization
