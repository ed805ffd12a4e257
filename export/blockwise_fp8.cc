#include "export/blockwise_fp8.h"

#include <ATen/ops/repeat_interleave.h>

namespace narrowgauge::exports {
namespace {

constexpr int64_t kSquare = 128;

}  // namespace

quantization::Scheme blockwise_fp8_scheme() {
  quantization::Scheme scheme;
  scheme.name = "float8-blockwise";
  scheme.weight.grid = quantization::Grid::kFloat8;
  scheme.weight.granularity = quantization::Granularity::kPerGroup;
  scheme.weight.group_size = kSquare;
  scheme.weight.scale_dtype = c10::ScalarType::Float;
  scheme.activation = scheme.weight;
  return scheme;
}

at::Tensor dequantize_weight(const quantization::QuantizedTensor& weight, at::ScalarType dtype) {
  if (weight.spec != blockwise_fp8_scheme().weight) {
    return quantization::dequantize(weight, dtype);
  }
  const at::Tensor scale = weight.scale.repeat_interleave(kSquare, 0)
                               .narrow(0, 0, weight.codes.size(0))
                               .repeat_interleave(kSquare, 1)
                               .narrow(1, 0, weight.codes.size(1));
  return weight.codes.to(at::kFloat).mul(scale).to(dtype);
}

}  // namespace narrowgauge::exports
