#include "trainer/install_quantized_model.h"

#include <ATen/ops/cat.h>

#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/huggingface_names.h"
#include "nn/swap_linear.h"
#include "quantization/quantized_linear.h"

namespace narrowgauge::trainer {
namespace {

using checkpoint::HuggingFacePiece;
using checkpoint::ParameterSpec;
using quantization::QuantizedModel;
using quantization::QuantizedTensor;
using quantization::QuantizedWeight;

std::string module_of(const std::string& parameter) {
  return parameter.substr(0, parameter.rfind('.'));
}

void check_sizes(const std::string& name, at::IntArrayRef sizes,
                 const std::vector<int64_t>& expected) {
  if (sizes != at::IntArrayRef(expected)) {
    std::string text;
    for (const int64_t size : expected) {
      text += (text.empty() ? "[" : ", ") + std::to_string(size);
    }
    throw std::runtime_error(name + ": expected the shape " + text + "]");
  }
}

QuantizedTensor moved(const QuantizedTensor& q, at::Device device) {
  QuantizedTensor result = q;
  result.codes = q.codes.to(device);
  result.scale = q.scale.to(device);
  if (q.zero_point) {
    result.zero_point = q.zero_point->to(device);
  }
  if (q.outer_scale) {
    result.outer_scale = q.outer_scale->to(device);
  }
  return result;
}

// The pieces of a parameter, taken out of the model one after another.
class Installation {
 public:
  Installation(const QuantizedModel& quantized, nn::Transformer& model, at::Device device)
      : quantized_(quantized), model_(model), device_(device) {}

  void run() {
    std::map<std::string, std::vector<HuggingFacePiece>> linears;  // by our module
    for (const ParameterSpec& spec : checkpoint::parameter_specs(model_.config())) {
      const auto pieces = checkpoint::huggingface_pieces(model_.config(), spec);
      const bool is_quantized = quantized_.weights.count(module_of(pieces.front().name)) > 0 &&
                                spec.name.ends_with(".weight");
      if (is_quantized && spec.name != "embed_tokens.weight") {
        linears[module_of(spec.name)] = pieces;
      } else {
        model_.replace_parameter(spec.name, plain_values(pieces));
      }
    }
    swap(linears);
    for (const auto& [name, weight] : quantized_.weights) {
      require_used(name + ".weight");
    }
    for (const auto& [name, tensor] : quantized_.plain) {
      require_used(name);
    }
  }

 private:
  void require_used(const std::string& name) const {
    if (used_.count(name) == 0) {
      throw std::runtime_error("the quantized model holds " + name +
                               ", which its config.json has no place for");
    }
  }

  const QuantizedWeight& weight_of(const HuggingFacePiece& piece) {
    const auto found = quantized_.weights.find(module_of(piece.name));
    if (found == quantized_.weights.end()) {
      throw std::runtime_error("the quantized model lacks " + piece.name);
    }
    check_sizes(piece.name, found->second.tensor.codes.sizes(), piece.sizes);
    used_.insert(piece.name);
    return found->second;
  }

  at::Tensor plain_values(const std::vector<HuggingFacePiece>& pieces) {
    const at::ScalarType dtype = model_.embed_tokens->weight.scalar_type();
    std::vector<at::Tensor> rows;
    for (const HuggingFacePiece& piece : pieces) {
      const auto found = quantized_.plain.find(piece.name);
      if (found == quantized_.plain.end()) {
        rows.push_back(quantization::dequantize(weight_of(piece).tensor, dtype).to(device_));
        continue;
      }
      check_sizes(piece.name, found->second.sizes(), piece.sizes);
      used_.insert(piece.name);
      rows.push_back(found->second.to(device_, dtype));
    }
    return rows.size() == 1 ? rows.front() : at::cat(rows);
  }

  std::shared_ptr<nn::Linear> make(const std::vector<HuggingFacePiece>& pieces,
                                   const nn::Linear& source) {
    std::vector<QuantizedTensor> parts;
    const QuantizedWeight& first = weight_of(pieces.front());
    for (const HuggingFacePiece& piece : pieces) {
      const QuantizedWeight& weight = weight_of(piece);
      if (!(weight.scheme == first.scheme)) {
        throw std::runtime_error(piece.name + ": expected the scheme of " + pieces.front().name +
                                 ", with which it is one product here");
      }
      parts.push_back(moved(weight.tensor, device_));
    }
    return std::make_shared<quantization::QuantizedLinear>(source.spec, std::move(parts),
                                                           first.scheme.activation, source.bias);
  }

  void swap(const std::map<std::string, std::vector<HuggingFacePiece>>& linears) {
    const std::vector<HuggingFacePiece>* pieces = nullptr;
    nn::swap_linear(
        model_,
        [&](const nn::Linear&, std::string_view fqn) {
          const auto found = linears.find(std::string(fqn));
          pieces = found == linears.end() ? nullptr : &found->second;
          return pieces != nullptr;
        },
        [&](const nn::Linear& source) { return make(*pieces, source); });
  }

  const QuantizedModel& quantized_;
  nn::Transformer& model_;
  at::Device device_;
  std::set<std::string> used_;  // Hugging Face names of parameters
};

}  // namespace

void install_quantized_model(const QuantizedModel& quantized, nn::Transformer& model,
                             c10::Device device) {
  Installation(quantized, model, device).run();
}

}  // namespace narrowgauge::trainer
