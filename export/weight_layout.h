#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "export/export_model.h"

namespace narrowgauge::exports {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

// How a family of runtimes finds quantized weights in a Hugging Face directory: the tensors of a
// module, quantization_config in config.json, metadata in the files. Stateless.
class WeightLayout {
 public:
  virtual ~WeightLayout() = default;

  // As --format names it.
  virtual std::string name() const = 0;

  // Why the format cannot hold `module` quantized so without changing its numbers, or nothing.
  virtual std::optional<std::string> refusal(const std::string& module,
                                             const quantization::Scheme& scheme) const = 0;

  // The tensors that hold `weight`. dtype: ExportModel's. Works on meta tensors, too, which gives
  // names, dtypes and sizes. REQUIRES: !refusal(module, scheme).
  virtual std::vector<NamedTensor> pack(const std::string& module,
                                        const quantization::Scheme& scheme,
                                        const quantization::QuantizedTensor& weight,
                                        at::ScalarType dtype) const = 0;

  // The inverse, bit for bit, from what the file says (sizes from its tensors).
  virtual quantization::QuantizedTensor unpack(const std::string& module,
                                               const quantization::Scheme& scheme,
                                               const TensorReader& read) const = 0;

  // For config.json.
  virtual nlohmann::json quantization_config(const ExportModel& model) const = 0;

  // __metadata__ of every file.
  virtual std::map<std::string, std::string> metadata(const ExportModel&) const {
    return {{"format", "pt"}};
  }
};

}  // namespace narrowgauge::exports
