#include "quantization/float8_grid.h"

#include "float8/formats.h"
#include "quantization/group_factors.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {

QuantizedTensor quantize_float8(const at::Tensor& x, const QuantizationSpec& spec) {
  const GroupFactors factors = group_factors(largest_of_groups(x, spec), spec, x.scalar_type());
  QuantizedTensor q;
  q.scale = factors.scale;
  q.codes = float8::to_fp8_saturated(
                grouped(x.detach(), spec).to(at::kFloat).div(factors.before.unsqueeze(2)),
                at::kFloat8_e4m3fn)
                .reshape(x.sizes());
  q.spec = spec;
  return q;
}

at::Tensor dequantize_float8(const QuantizedTensor& q, c10::ScalarType dtype) {
  return grouped(q.codes, q.spec)
      .to(at::kFloat)
      .mul(q.scale.unsqueeze(2))
      .to(dtype)
      .reshape(q.codes.sizes());
}

at::Tensor round_rows_to_float8(const at::Tensor& x) {
  QuantizationSpec spec;
  spec.grid = Grid::kFloat8;
  spec.granularity = Granularity::kPerRow;
  spec.eps = 1e-12;
  return dequantize_float8(quantize_float8(x, spec), x.scalar_type());
}

}  // namespace narrowgauge::quantization
