#include "quantization/quantized_linear.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <c10/util/Exception.h>

namespace narrowgauge::quantization {
namespace {

nn::LinearSpec without_bias(nn::LinearSpec spec) {
  spec.bias = false;
  return spec;
}

}  // namespace

QuantizedLinear::QuantizedLinear(nn::LinearSpec spec, std::vector<QuantizedTensor> parts,
                                 std::optional<QuantizationSpec> activation, const at::Tensor& bias)
    : Linear(without_bias(spec), at::TensorOptions().device(at::kMeta)),
      parts_(std::move(parts)),
      activation_(std::move(activation)) {
  this->spec = spec;
  int64_t rows = 0;
  for (const QuantizedTensor& part : parts_) {
    check_quantized_tensor(part);
    TORCH_CHECK(part.codes.dim() == 2 && part.codes.size(1) == spec.in_features,
                "expected codes of ", spec.in_features, " columns, got ", part.codes.sizes());
    rows += part.codes.size(0);
  }
  TORCH_CHECK(rows == spec.out_features, "expected ", spec.out_features, " rows of codes, got ",
              rows);
  TORCH_CHECK(bias.defined() == spec.bias, "expected a bias where the layer has one");
  add_parameter("bias", this->bias, bias);
  packed_ = pack(parts_);
  if (packed_) {
    parts_.clear();
  }
}

int64_t QuantizedLinear::weight_bytes() const {
  int64_t bytes = packed_ ? packed_->size_bytes() : 0;
  for (const QuantizedTensor& part : parts_) {
    bytes += static_cast<int64_t>(part.codes.nbytes() + part.scale.nbytes());
    bytes += part.zero_point ? static_cast<int64_t>(part.zero_point->nbytes()) : 0;
  }
  return bytes;
}

at::Tensor QuantizedLinear::forward(const at::Tensor& x) {
  const at::Tensor input = activation_ ? fake_quantize(x, *activation_) : x;
  if (packed_) {
    return packed_linear(input, *packed_, bias);
  }
  std::vector<at::Tensor> weights;
  for (const QuantizedTensor& part : parts_) {
    weights.push_back(dequantize(part, x.scalar_type()));
  }
  return at::linear(input, weights.size() == 1 ? weights.front() : at::cat(weights), bias);
}

}  // namespace narrowgauge::quantization
