#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "nn/linear.h"
#include "quantization/packed_weight.h"
#include "quantization/scheme.h"

namespace narrowgauge::quantization {

// A linear for inference whose weight stays in codes. Computes what fake-quantized training
// computed, up to rounding: x is rounded as the scheme says (if it says), the weight's values are
// those of dequantize. `weight` is a meta tensor: there is no copy in full width.
//
// On the CPU codes are packed (see packed_weight.h) where the layout allows it, and cost their
// bytes alone; otherwise, and on a GPU, they are dequantized to x's dtype at each call.
class QuantizedLinear : public nn::Linear {
 public:
  // parts: the weights stacked by rows, on one device, of spec.in_features columns and together
  // spec.out_features rows. bias: undefined without one.
  QuantizedLinear(nn::LinearSpec spec, std::vector<QuantizedTensor> parts,
                  std::optional<QuantizationSpec> activation, const at::Tensor& bias);

  // Bytes that hold the weight.
  int64_t weight_bytes() const;
  bool is_packed() const { return packed_.has_value(); }

 protected:
  at::Tensor forward(const at::Tensor& x) override;

 private:
  std::vector<QuantizedTensor> parts_;  // empty when packed
  std::optional<PackedWeight> packed_;
  std::optional<QuantizationSpec> activation_;
};

}  // namespace narrowgauge::quantization
