#include "export/export_model.h"

#include <ATen/ops/cat.h>

#include <algorithm>

#include "export/blockwise_fp8.h"

namespace narrowgauge::exports {

std::string module_of(const std::string& tensor) {
  const std::string suffix = ".weight";
  return tensor.ends_with(suffix) ? tensor.substr(0, tensor.size() - suffix.size()) : "";
}

at::Tensor model_values(const ExportModel& model, const std::string& tensor) {
  const std::string module = module_of(tensor);
  return model.schemes.count(module) > 0 ? dequantize_weight(model.quantized(module), model.dtype)
                                         : model.plain(tensor).detach().to(model.dtype);
}

std::vector<ModelTensor> model_tensors(const nn::TransformerConfig& config) {
  std::vector<ModelTensor> tensors;
  for (const checkpoint::ParameterSpec& parameter : checkpoint::parameter_specs(config)) {
    for (checkpoint::HuggingFacePiece& piece : checkpoint::huggingface_pieces(config, parameter)) {
      tensors.push_back({piece.name, module_of(piece.name), std::move(piece.sizes)});
    }
  }
  return tensors;
}

at::Tensor fused_parameter(const nn::TransformerConfig& config,
                           const checkpoint::ParameterSpec& parameter, const TensorReader& read) {
  std::vector<at::Tensor> pieces;
  for (const auto& piece : checkpoint::huggingface_pieces(config, parameter)) {
    pieces.push_back(read(piece.name));
  }
  return pieces.size() == 1 ? pieces.front() : at::cat(pieces);
}

std::vector<std::string> linear_modules(const nn::TransformerConfig& config) {
  std::vector<std::string> modules;
  for (const ModelTensor& tensor : model_tensors(config)) {
    if (tensor.sizes.size() == 2 && tensor.module != "model.embed_tokens") {
      modules.push_back(tensor.module);
    }
  }
  return modules;
}

void check_export_model(const ExportModel& model) {
  TORCH_CHECK(model.dtype == at::kFloat || model.dtype == at::kBFloat16 || model.dtype == at::kHalf,
              "expected an export in float32, bfloat16 or float16, got ", model.dtype);
  const std::vector<ModelTensor> tensors = model_tensors(model.config.transformer);
  for (const auto& [module, scheme] : model.schemes) {
    const bool known =
        std::any_of(tensors.begin(), tensors.end(), [&, &name = module](const ModelTensor& tensor) {
          return tensor.module == name && tensor.sizes.size() == 2;
        });
    TORCH_CHECK(known, "expected quantized weights of linears and of the embedding, got '", module,
                "' with scheme ", scheme.name);
  }
}

}  // namespace narrowgauge::exports
