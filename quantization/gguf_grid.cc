#include "quantization/gguf_grid.h"

#include <ATen/ops/argmax.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/copysign.h>
#include <ATen/ops/floor.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/trunc.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

// 1 / d, or 0 where d is 0.
at::Tensor reciprocal_or_zero(const at::Tensor& d) {
  return at::where(d.eq(0), 0.0, d.reciprocal()).to(at::kFloat);
}

at::Tensor q4_0_codes(const at::Tensor& groups, const at::Tensor& d) {
  // The product of two fp32 is exact in fp64; to fp32 rounds once.
  const at::Tensor sum = groups.to(at::kDouble)
                             .mul(reciprocal_or_zero(d).to(at::kDouble).unsqueeze(2))
                             .add(8.5)
                             .to(at::kFloat);
  return at::clamp(at::trunc(at::nan_to_num(sum, 8.0)), 0, 15).to(at::kByte);
}

at::Tensor q8_0_codes(const at::Tensor& groups, const at::Tensor& d) {
  const at::Tensor scaled = at::nan_to_num(groups.mul(reciprocal_or_zero(d).unsqueeze(2)), 0.0);
  const at::Tensor magnitude = scaled.abs();
  const at::Tensor whole = at::floor(magnitude);
  const at::Tensor rounded = whole.add(magnitude.sub(whole).ge(0.5).to(at::kFloat));
  return at::clamp(at::copysign(rounded, scaled), -127, 127).to(at::kChar);
}

}  // namespace

QuantizedTensor quantize_gguf(const at::Tensor& x, const QuantizationSpec& spec) {
  const bool q4 = spec.grid == Grid::kGgufQ4_0;
  const at::Tensor groups = grouped(x.detach(), spec).to(at::kFloat);
  const at::Tensor magnitude = groups.abs();
  at::Tensor d;
  if (groups.numel() == 0) {
    d = at::zeros({groups.size(0), groups.size(1)}, groups.options());
  } else if (q4) {
    const at::Tensor largest = magnitude.argmax(2, /*keepdim=*/true);
    d = groups.gather(2, largest).squeeze(2).div(-8.0);
  } else {
    d = magnitude.amax({2}).div(127.0);
  }
  QuantizedTensor q;
  q.codes = (q4 ? q4_0_codes(groups, d) : q8_0_codes(groups, d)).reshape(x.sizes());
  q.scale = d.to(at::kHalf);
  q.spec = spec;
  return q;
}

at::Tensor dequantize_gguf(const QuantizedTensor& q, c10::ScalarType dtype) {
  const double middle = q.spec.grid == Grid::kGgufQ4_0 ? 8.0 : 0.0;
  return grouped(q.codes, q.spec)
      .to(at::kFloat)
      .sub(middle)
      .mul(q.scale.to(at::kFloat).unsqueeze(2))
      .to(dtype)
      .reshape(q.codes.sizes());
}

}  // namespace narrowgauge::quantization
