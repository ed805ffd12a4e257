#include "qat/convert.h"

#include <map>
#include <string_view>

#include "checkpoint/huggingface_names.h"

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

}  // namespace

quantization::QuantizedModel convert(
    const nn::TransformerConfig& config,
    const std::vector<std::pair<std::string, quantization::Scheme>>& schemes, at::ScalarType dtype,
    at::ScalarType plain_dtype,
    const std::function<at::Tensor(const std::string& name)>& full_parameter) {
  const std::map<std::string, quantization::Scheme> scheme_of(schemes.begin(), schemes.end());
  quantization::QuantizedModel model;
  for (const checkpoint::ParameterSpec& parameter : checkpoint::parameter_specs(config)) {
    const at::Tensor whole = full_parameter(parameter.name).detach().to(at::kCPU);
    const auto pieces = checkpoint::huggingface_pieces(config, parameter);
    const auto scheme = scheme_of.find(module_of(parameter.name));
    if (scheme == scheme_of.end()) {
      for (const checkpoint::HuggingFacePiece& piece : pieces) {
        model.plain.emplace(
            piece.name,
            whole.narrow(0, piece.row_begin, piece.row_end - piece.row_begin).to(plain_dtype));
      }
      continue;
    }
    const auto quantized = quantization::quantize(whole.to(dtype), scheme->second.weight);
    for (const checkpoint::HuggingFacePiece& piece : pieces) {
      model.weights.emplace(module_of(piece.name),
                            quantization::QuantizedWeight{
                                quantization::rows(quantized, piece.row_begin, piece.row_end),
                                scheme->second, dtype});
    }
  }
  return model;
}

}  // namespace narrowgauge::qat
