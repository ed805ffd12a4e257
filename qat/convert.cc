#include "qat/convert.h"

#include <map>
#include <string_view>

#include "checkpoint/huggingface_names.h"
#include "qat/learned_range.h"

namespace narrowgauge::qat {
namespace {

constexpr std::string_view kWeight = ".weight";

// "layers.0.mlp.down_proj.weight" -> "layers.0.mlp.down_proj"; "" for what is
// no weight.
std::string module_of(std::string_view parameter) {
  if (!parameter.ends_with(kWeight)) {
    return "";
  }
  return std::string(parameter.substr(0, parameter.size() - kWeight.size()));
}

using LayersByName = std::map<std::string, PreparedLayer>;
using FullParameter = std::function<at::Tensor(const std::string& name)>;

LayersByName by_name(const std::vector<PreparedLayer>& layers) {
  LayersByName map;
  for (const PreparedLayer& layer : layers) {
    map.emplace(layer.fqn, layer);
  }
  return map;
}

std::string range_name(const PreparedLayer& layer, std::string_view parameter) {
  return layer.fqn + "." + std::string(parameter);
}

// The range as forward read it, cast with the weight.
LearnedRange range_of(const PreparedLayer& layer, at::ScalarType dtype,
                      const FullParameter& full_parameter) {
  const auto read = [&](std::string_view parameter) {
    return full_parameter(range_name(layer, parameter)).detach().to(at::kCPU).to(dtype);
  };
  LearnedRange range{read(kScaleName), {}};
  if (has_zero_points(layer.scheme.weight)) {
    range.zero_point = read(kZeroPointName);
  }
  return range;
}

}  // namespace

quantization::QuantizedModel convert(const nn::TransformerConfig& config,
                                     const std::vector<PreparedLayer>& layers, at::ScalarType dtype,
                                     at::ScalarType plain_dtype,
                                     const FullParameter& full_parameter) {
  const LayersByName layer_of = by_name(layers);
  quantization::QuantizedModel model;
  for (const checkpoint::ParameterSpec& parameter : checkpoint::parameter_specs(config)) {
    const at::Tensor whole = full_parameter(parameter.name).detach().to(at::kCPU);
    const auto pieces = checkpoint::huggingface_pieces(config, parameter);
    const auto layer = layer_of.find(module_of(parameter.name));
    if (layer == layer_of.end()) {
      for (const checkpoint::HuggingFacePiece& piece : pieces) {
        model.plain.emplace(
            piece.name,
            whole.narrow(0, piece.row_begin, piece.row_end - piece.row_begin).to(plain_dtype));
      }
      continue;
    }
    const quantization::Scheme& scheme = layer->second.scheme;
    const at::Tensor weight = whole.to(dtype);
    const auto quantized =
        layer->second.learns_range
            ? quantize(weight, range_of(layer->second, dtype, full_parameter), scheme.weight)
            : quantization::quantize(weight, scheme.weight);
    for (const checkpoint::HuggingFacePiece& piece : pieces) {
      model.weights.emplace(
          module_of(piece.name),
          quantization::QuantizedWeight{
              quantization::rows(quantized, piece.row_begin, piece.row_end), scheme, dtype});
    }
  }
  return model;
}

std::vector<std::string> parameters_to_convert(const nn::TransformerConfig& config,
                                               const std::vector<PreparedLayer>& layers) {
  const LayersByName layer_of = by_name(layers);
  std::vector<std::string> names;
  for (const checkpoint::ParameterSpec& parameter : checkpoint::parameter_specs(config)) {
    names.push_back(parameter.name);
    const auto layer = layer_of.find(module_of(parameter.name));
    if (layer != layer_of.end() && layer->second.learns_range) {
      names.push_back(range_name(layer->second, kScaleName));
      if (has_zero_points(layer->second.scheme.weight)) {
        names.push_back(range_name(layer->second, kZeroPointName));
      }
    }
  }
  return names;
}

}  // namespace narrowgauge::qat
