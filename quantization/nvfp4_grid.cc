#include "quantization/nvfp4_grid.h"

#include "quantization/e2m1.h"
#include "quantization/group_factors.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {

QuantizedTensor quantize_nvfp4(const at::Tensor& x, const QuantizationSpec& spec) {
  const GroupFactors factors = group_factors(largest_of_groups(x, spec), spec, x.scalar_type());
  QuantizedTensor q;
  q.scale = factors.scale;
  q.outer_scale = factors.outer_scale;
  q.codes = to_e2m1(grouped(x.detach(), spec).to(at::kFloat).mul(factors.before.unsqueeze(2)))
                .reshape(x.sizes());
  q.spec = spec;
  return q;
}

at::Tensor dequantize_nvfp4(const QuantizedTensor& q, c10::ScalarType dtype) {
  const at::Tensor scale = q.outer_scale->mul(q.scale.to(at::kFloat));
  return from_e2m1(grouped(q.codes, q.spec))
      .mul(scale.unsqueeze(2))
      .to(dtype)
      .reshape(q.codes.sizes());
}

}  // namespace narrowgauge::quantization
