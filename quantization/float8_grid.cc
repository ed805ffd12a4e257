#include "quantization/float8_grid.h"

#include <ATen/ops/clamp_min.h>
#include <ATen/ops/zeros.h>

#include "float8/formats.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {

QuantizedTensor quantize_float8(const at::Tensor& x, const QuantizationSpec& spec) {
  const at::Tensor groups = grouped(x.detach(), spec);
  const at::Tensor amax = groups.numel() == 0
                              ? at::zeros({groups.size(0), groups.size(1)}, groups.options())
                              : groups.abs().amax({2});
  const double largest = float8::float8_max(at::kFloat8_e4m3fn);
  QuantizedTensor q;
  q.scale = at::clamp_min(amax, spec.eps).div(largest).to(at::kFloat);
  q.codes =
      float8::to_fp8_saturated(groups.to(at::kFloat).div(q.scale.unsqueeze(2)), at::kFloat8_e4m3fn)
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
