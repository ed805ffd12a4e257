#include "trainer/prune_block.h"

#include <ATen/core/grad_mode.h>

#include <string>

#include "checkpoint/huggingface_names.h"

namespace narrowgauge::trainer {
namespace {

using quantization::InputStatistics;

at::Tensor prune(const at::Tensor& weight, const InputStatistics* inputs, PruningMethod method,
                 const sparsity::PruningPattern& pattern) {
  switch (method) {
    case PruningMethod::kMagnitude:
      break;
    case PruningMethod::kWanda: {
      // The norm over all tokens but for a factor that all inputs share.
      const at::Tensor norm = inputs->hessian().diagonal().sqrt();
      return weight.masked_fill(sparsity::wanda_mask(weight, norm, pattern).logical_not(), 0);
    }
    case PruningMethod::kSparseGpt:
      return sparsity::sparsegpt(weight, inputs->hessian(), pattern);
  }
  return weight.masked_fill(sparsity::magnitude_mask(weight, pattern).logical_not(), 0);
}

}  // namespace

quantization::QuantizedModel prune_block(nn::TransformerBlock& block,
                                         const nn::TransformerConfig& config, int64_t layer,
                                         const quantization::CalibrationState& state,
                                         PruningMethod method,
                                         const sparsity::PruningPattern& pattern) {
  const at::NoGradGuard no_grad;
  TORCH_CHECK(method == PruningMethod::kMagnitude || !state.activations.empty(),
              "expected calibration text for this method, got none");
  quantization::BlockInputs inputs;
  if (method != PruningMethod::kMagnitude) {
    inputs = quantization::observe_inputs(block, config, layer, state);
  }
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  quantization::QuantizedModel result;
  for (const auto& parameter : block.named_parameters()) {
    const std::string& name = parameter.key();
    const bool is_linear = name.ends_with("_proj.weight");
    const std::string linear = is_linear ? name.substr(0, name.rfind('.')) : "";
    const auto observed = inputs.find(linear);
    for (const auto& piece :
         checkpoint::huggingface_pieces(config, {prefix + name, parameter.value().sizes().vec()})) {
      const at::Tensor rows =
          parameter.value().detach().narrow(0, piece.row_begin, piece.row_end - piece.row_begin);
      if (!is_linear) {
        result.plain[piece.name] = rows.clone();
        continue;
      }
      TORCH_CHECK(pattern.is_unstructured() || rows.size(1) % pattern.group == 0, piece.name,
                  ": expected in_features that ", pattern.group, " divides, got ", rows.size(1),
                  "; name a share instead of ", sparsity::to_string(pattern));
      result.plain[piece.name] =
          prune(rows, observed == inputs.end() ? nullptr : &observed->second, method, pattern);
    }
  }
  return result;
}

}  // namespace narrowgauge::trainer
