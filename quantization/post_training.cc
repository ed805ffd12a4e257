#include "quantization/post_training.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>

#include <memory>
#include <utility>

#include "checkpoint/huggingface_names.h"
#include "quantization/equalization.h"
#include "quantization/gptq.h"
#include "quantization/hqq.h"

namespace narrowgauge::quantization {
namespace {

// A block's linears by the names of their parents in the model.
std::vector<std::pair<std::string, std::shared_ptr<nn::Linear>>> linears_of(
    const nn::TransformerBlock& block) {
  return {{"self_attn.qkv_proj", block.self_attn->qkv_proj},
          {"self_attn.o_proj", block.self_attn->o_proj},
          {"mlp.gate_up_proj", block.mlp->gate_up_proj},
          {"mlp.down_proj", block.mlp->down_proj}};
}

QuantizedTensor quantize_piece(const at::Tensor& weight, const QuantizationSpec& spec,
                               const InputStatistics* inputs, const GptqFactor* factor,
                               const PostTrainingOptions& options) {
  switch (options.method) {
    case Method::kHqq:
      return hqq(weight, spec);
    case Method::kGptq:
      return gptq(weight, *factor, spec, {.act_order = options.act_order});
    case Method::kAwq:
      return spec.grid == Grid::kAffine && spec.granularity != Granularity::kPerTensor
                 ? quantize_clipped(weight, *inputs, spec)
                 : quantize(weight, spec);
    case Method::kRoundToNearest:
    case Method::kSmoothQuant:
      break;
  }
  return quantize(weight, spec);
}

// What computes a linear's input, and the factor's way into it.
struct Producer {
  std::string consumer;
  at::Tensor* weight;  // divided by the factor: a norm's, or rows of a linear's
  at::Tensor* bias;    // of those rows; null without
  int64_t first_row;
  int64_t copies;  // inputs that share one row: the heads that read one value head
};

std::vector<Producer> producers_of(nn::TransformerBlock& block,
                                   const nn::TransformerConfig& config) {
  nn::Linear& qkv = *block.self_attn->qkv_proj;
  nn::Linear& gate_up = *block.mlp->gate_up_proj;
  const auto bias_of = [](nn::Linear& linear) {
    return linear.bias.defined() ? &linear.bias : nullptr;
  };
  const int64_t first_value = (config.num_heads + config.num_kv_heads) * config.head_dim;
  return {{"self_attn.qkv_proj", &block.input_layernorm->weight, nullptr, 0, 1},
          {"self_attn.o_proj", &qkv.weight, bias_of(qkv), first_value,
           config.num_heads / config.num_kv_heads},
          {"mlp.gate_up_proj", &block.post_attention_layernorm->weight, nullptr, 0, 1},
          {"mlp.down_proj", &gate_up.weight, bias_of(gate_up), config.ffn_dim, 1}};
}

// values: [cols], `copies` heads one after another for each row's head: one value for all of them.
at::Tensor shared(const at::Tensor& values, int64_t copies, int64_t head_dim) {
  if (copies == 1) {
    return values;
  }
  const at::Tensor heads = values.view({-1, copies, head_dim});
  return heads.mean({1}, true).expand_as(heads).reshape({-1});
}

// One value a row of the producer.
at::Tensor by_rows(const at::Tensor& factor, int64_t copies, int64_t head_dim) {
  return copies == 1 ? factor : factor.view({-1, copies, head_dim}).select(1, 0).reshape({-1});
}

void divide_rows(at::Tensor& parameter, int64_t first_row, const at::Tensor& factor) {
  const at::Tensor rows = parameter.narrow(0, first_row, factor.size(0));
  const at::Tensor divisor = parameter.dim() == 2 ? factor.unsqueeze(1) : factor;
  rows.copy_(rows.to(at::kFloat).div(divisor));
}

// Moves the sizes of input channels into the weights, for AWQ and SmoothQuant.
void equalize(nn::TransformerBlock& block, const nn::TransformerConfig& config,
              const std::map<std::string, Scheme>& schemes, BlockInputs& statistics,
              const PostTrainingOptions& options) {
  std::map<std::string, std::shared_ptr<nn::Linear>> linears;
  for (const auto& [name, linear] : linears_of(block)) {
    linears[name] = linear;
  }
  for (const Producer& producer : producers_of(block, config)) {
    const auto scheme = schemes.find(producer.consumer);
    if (scheme == schemes.end()) {
      continue;
    }
    at::Tensor& weight = linears.at(producer.consumer)->weight;
    InputStatistics& inputs = statistics.at(producer.consumer);
    const auto tied = [&](const at::Tensor& values) {
      return shared(values, producer.copies, config.head_dim);
    };
    const at::Tensor factor =
        options.method == Method::kAwq
            ? awq_scale(weight, inputs, tied(inputs.mean_abs()), scheme->second.weight).factor
            : tied(smooth_quant_scale(weight, inputs.max_abs(), options.smooth_alpha));
    weight.copy_(weight.to(at::kFloat).mul(factor));
    inputs.divide(factor);
    const at::Tensor divisor = by_rows(factor, producer.copies, config.head_dim);
    divide_rows(*producer.weight, producer.first_row, divisor);
    if (producer.bias != nullptr) {
      divide_rows(*producer.bias, producer.first_row, divisor);
    }
  }
}

std::string module_of(const std::string& parameter) {
  return parameter.substr(0, parameter.size() - std::string(".weight").size());
}

void quantize_with(const nn::TransformerConfig& config, const std::string& name,
                   const at::Tensor& weight, const Scheme& scheme, const InputStatistics* inputs,
                   const PostTrainingOptions& options, QuantizedModel& into) {
  std::optional<GptqFactor> factor;
  TORCH_CHECK(inputs != nullptr || !needs_calibration(options.method),
              "expected calibration inputs of ", name, " for this method, got none");
  if (options.method == Method::kGptq) {
    factor = factorize(inputs->hessian(), {.act_order = options.act_order});
  }
  for (const auto& piece :
       checkpoint::huggingface_pieces(config, {name + ".weight", weight.sizes().vec()})) {
    const at::Tensor rows = weight.narrow(0, piece.row_begin, piece.row_end - piece.row_begin);
    into.weights[module_of(piece.name)] = {
        quantize_piece(rows, scheme.weight, inputs, factor ? &*factor : nullptr, options), scheme,
        weight.scalar_type()};
  }
}

void keep_plain(const nn::TransformerConfig& config, const std::string& name,
                const at::Tensor& parameter, QuantizedModel& into) {
  for (const auto& piece :
       checkpoint::huggingface_pieces(config, {name, parameter.sizes().vec()})) {
    into.plain[piece.name] =
        parameter.detach().narrow(0, piece.row_begin, piece.row_end - piece.row_begin).clone();
  }
}

std::string prefix_of(int64_t layer) { return "layers." + std::to_string(layer) + "."; }

}  // namespace

bool needs_calibration(Method method) {
  return method == Method::kGptq || method == Method::kAwq || method == Method::kSmoothQuant;
}

// The block's hooks look at a copy of its structure that shares the parameters.
BlockInputs observe_inputs(nn::TransformerBlock& block, const nn::TransformerConfig& config,
                           int64_t layer, const CalibrationState& state) {
  BlockInputs statistics;
  if (state.activations.empty()) {
    return statistics;
  }
  const at::NoGradGuard no_grad;
  const at::TensorOptions options = block.input_layernorm->weight.options().device(at::kMeta);
  nn::TransformerBlock observed(config, layer, options);
  for (const auto& parameter : block.named_parameters()) {
    observed.replace_parameter(parameter.key(), parameter.value());
  }
  for (const auto& [name, linear] : linears_of(observed)) {
    const auto entry = statistics.emplace(name, InputStatistics(linear->spec.in_features)).first;
    linear->register_forward_pre_hook([into = &entry->second](at::Tensor x) {
      into->add(x);
      return x;
    });
  }
  for (const at::Tensor& x : state.activations) {
    observed(x, state.context);
  }
  return statistics;
}

QuantizedModel quantize_block(nn::TransformerBlock& block, const nn::TransformerConfig& config,
                              int64_t layer, const CalibrationState& state,
                              const PostTrainingOptions& options) {
  const at::NoGradGuard no_grad;
  TORCH_CHECK(!needs_calibration(options.method) || !state.activations.empty(),
              "expected calibration text for this method, got none");
  BlockInputs statistics = observe_inputs(block, config, layer, state);
  const auto inputs_of = [&](const std::string& name) {
    const auto found = statistics.find(name);
    return found == statistics.end() ? nullptr : &found->second;
  };
  std::map<std::string, Scheme> schemes;
  for (const auto& [name, linear] : linears_of(block)) {
    if (auto scheme = options.scheme(prefix_of(layer) + name, linear->weight, inputs_of(name))) {
      schemes[name] = *std::move(scheme);
    }
  }
  if (options.method == Method::kAwq || options.method == Method::kSmoothQuant) {
    equalize(block, config, schemes, statistics, options);
  }
  QuantizedModel result;
  for (const auto& [name, linear] : linears_of(block)) {
    const auto scheme = schemes.find(name);
    if (scheme != schemes.end()) {
      quantize_with(config, prefix_of(layer) + name, linear->weight, scheme->second,
                    inputs_of(name), options, result);
    }
  }
  for (const auto& parameter : block.named_parameters()) {
    const std::string& name = parameter.key();
    if (!name.ends_with(".weight") || schemes.count(module_of(name)) == 0) {
      keep_plain(config, prefix_of(layer) + name, parameter.value(), result);
    }
  }
  return result;
}

void apply_to_block(nn::TransformerBlock& block, const nn::TransformerConfig& config, int64_t layer,
                    const QuantizedModel& part) {
  const at::NoGradGuard no_grad;
  for (auto& parameter : block.named_parameters()) {
    std::vector<at::Tensor> rows;
    const at::ScalarType dtype = parameter.value().scalar_type();
    for (const auto& piece : checkpoint::huggingface_pieces(
             config, {prefix_of(layer) + parameter.key(), parameter.value().sizes().vec()})) {
      const auto plain = part.plain.find(piece.name);
      if (plain != part.plain.end()) {
        rows.push_back(plain->second.to(dtype));
        continue;
      }
      const auto quantized = part.weights.find(module_of(piece.name));
      TORCH_CHECK(quantized != part.weights.end(), "expected a tensor ", piece.name, ", got none");
      rows.push_back(dequantize(quantized->second.tensor, dtype));
    }
    block.replace_parameter(parameter.key(), rows.size() == 1 ? rows.front() : at::cat(rows));
  }
}

void advance(nn::TransformerBlock& block, CalibrationState& state) {
  const at::NoGradGuard no_grad;
  for (at::Tensor& x : state.activations) {
    x = block(x, state.context);
  }
}

void quantize_linear(const nn::TransformerConfig& config, const std::string& name,
                     const at::Tensor& weight, const InputStatistics* inputs,
                     const PostTrainingOptions& options, QuantizedModel& into) {
  const at::NoGradGuard no_grad;
  if (const auto scheme = options.scheme(name, weight, inputs)) {
    quantize_with(config, name, weight, *scheme, inputs, options, into);
  } else {
    keep_plain(config, name + ".weight", weight, into);
  }
}

}  // namespace narrowgauge::quantization
