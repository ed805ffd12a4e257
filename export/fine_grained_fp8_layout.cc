#include "export/fine_grained_fp8_layout.h"

namespace narrowgauge::exports {
namespace {

using nlohmann::json;
using quantization::QuantizedTensor;
using quantization::Scheme;

constexpr int64_t kBlock = 128;

class FineGrainedFp8Layout : public WeightLayout {
 public:
  std::string name() const override { return "fine-grained-fp8"; }

  std::optional<std::string> refusal(const std::string& module,
                                     const Scheme& scheme) const override {
    if (scheme != blockwise_fp8_scheme()) {
      return "its weights are e4m3 with a scale for each 128 x 128, as "
             "float8.recipe_name=blockwise "
             "trains";
    }
    if (module == "model.embed_tokens" || module == "lm_head") {
      return "its runtimes keep embedding and head in high precision";
    }
    return std::nullopt;
  }

  std::vector<NamedTensor> pack(const std::string& module, const Scheme&,
                                const QuantizedTensor& weight, at::ScalarType) const override {
    return {{module + ".weight", weight.codes}, {module + ".weight_scale_inv", weight.scale}};
  }

  QuantizedTensor unpack(const std::string& module, const Scheme& scheme,
                         const TensorReader& read) const override {
    QuantizedTensor weight;
    weight.codes = read(module + ".weight");
    weight.scale = read(module + ".weight_scale_inv");
    weight.spec = scheme.weight;
    return weight;
  }

  json quantization_config(const ExportModel& model) const override {
    std::vector<std::string> plain;
    for (const std::string& module : linear_modules(model.config.transformer)) {
      if (model.schemes.count(module) == 0) {
        plain.push_back(module);
      }
    }
    return {{"quant_method", "fp8"},
            {"activation_scheme", "dynamic"},
            {"weight_block_size", json::array({kBlock, kBlock})},
            {"fmt", "e4m3"},
            {"modules_to_not_convert", plain}};
  }
};

}  // namespace

std::unique_ptr<WeightLayout> fine_grained_fp8_layout() {
  return std::make_unique<FineGrainedFp8Layout>();
}

}  // namespace narrowgauge::exports
