#include "quantization/gguf_grid.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/copysign.h>
#include <ATen/ops/floor.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/trunc.h>

#include "quantization/group_factors.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

// Codes before they are clamped. The product of two fp32 is exact in fp64; to
// fp32 rounds once.
at::Tensor q4_0_sums(const at::Tensor& groups, const at::Tensor& before) {
  return groups.to(at::kDouble).mul(before.to(at::kDouble).unsqueeze(2)).add(8.5).to(at::kFloat);
}

at::Tensor q8_0_codes(const at::Tensor& groups, const at::Tensor& before) {
  const at::Tensor scaled = at::nan_to_num(groups.mul(before.unsqueeze(2)), 0.0);
  const at::Tensor magnitude = scaled.abs();
  const at::Tensor whole = at::floor(magnitude);
  const at::Tensor rounded = whole.add(magnitude.sub(whole).ge(0.5).to(at::kFloat));
  return at::clamp(at::copysign(rounded, scaled), -127, 127).to(at::kChar);
}

}  // namespace

QuantizedTensor quantize_gguf(const at::Tensor& x, const QuantizationSpec& spec) {
  const GroupFactors factors = group_factors(largest_of_groups(x, spec), spec, x.scalar_type());
  const at::Tensor groups = grouped(x.detach(), spec).to(at::kFloat);
  QuantizedTensor q;
  if (spec.grid == Grid::kGgufQ4_0) {
    const at::Tensor sums = at::nan_to_num(q4_0_sums(groups, factors.before), 8.0);
    q.codes = at::clamp(at::trunc(sums), 0, 15).to(at::kByte).reshape(x.sizes());
  } else {
    q.codes = q8_0_codes(groups, factors.before).reshape(x.sizes());
  }
  q.scale = factors.scale;
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

at::Tensor clipped_q4_0(const at::Tensor& x, const QuantizationSpec& spec) {
  const GroupFactors factors = group_factors(largest_of_groups(x, spec), spec, x.scalar_type());
  const at::Tensor groups = grouped(x.detach(), spec).to(at::kFloat);
  return q4_0_sums(groups, factors.before).ge(16.0).reshape(x.sizes());
}

}  // namespace narrowgauge::quantization
