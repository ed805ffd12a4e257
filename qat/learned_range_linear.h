#pragma once

#include <ATen/core/Tensor.h>

#include "qat/fake_quantized_linear.h"
#include "qat/learned_range.h"

namespace narrowgauge::qat {

// A FakeQuantizedLinear whose weight's scales, and zero points where they are values, are
// parameters: sharded by rows as the weight is, trained and saved with it. Under FSDP they and the
// weight travel as they are, in the dtype of compute, in which forward reads them; each forward
// quantizes the whole weight, and backward once more rather than keeping its values. Inputs are
// quantized as elsewhere, with ranges of their own.
class LearnedRangeLinear : public FakeQuantizedLinear {
 public:
  // Shares weight and bias with `source`. The range is empty, in the weight's dtype and device.
  // Throws c10::Error for a scheme with a learned_range_obstacle.
  LearnedRangeLinear(const nn::Linear& source, quantization::Scheme scheme);

  bool reads_weight_alone() const override { return false; }

  at::Tensor weight_scale;       // [out_features, groups]
  at::Tensor weight_zero_point;  // likewise; undefined without zero points

 protected:
  at::Tensor forward(const at::Tensor& x) override;
};

}  // namespace narrowgauge::qat
