#include "quantization/mx_grid.h"

#include <ATen/ops/ceil.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/log2.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "float8/formats.h"
#include "quantization/e2m1.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

constexpr int64_t kBias = 127;
constexpr int64_t kNan = 255;

}  // namespace

QuantizedTensor quantize_mx(const at::Tensor& x, const QuantizationSpec& spec) {
  const bool fp8 = spec.grid == Grid::kMxfp8;
  const double largest = fp8 ? float8::float8_max(at::kFloat8_e4m3fn) : kE2m1Max;
  const at::Tensor groups = grouped(x.detach(), spec).to(at::kFloat);
  const at::Tensor amax = groups.numel() == 0
                              ? at::zeros({groups.size(0), groups.size(1)}, groups.options())
                              : groups.abs().amax({2});
  const at::Tensor exponent =
      at::clamp(at::ceil(at::log2(amax.div(largest))), -kBias, kBias).add(kBias);
  QuantizedTensor q;
  q.scale = at::where(at::isfinite(amax), at::nan_to_num(exponent, kNan), kNan).to(at::kByte);
  const at::Tensor code = q.scale.to(at::kFloat).unsqueeze(2);
  // 2^-127, exponent 0, has no fp32 reciprocal of full precision; torchao takes 1.
  const at::Tensor multiplier = at::where(code.eq(0), 1.0, at::exp2(code.neg().add(kBias)));
  const at::Tensor scaled = at::clamp(groups.mul(multiplier), -largest, largest);
  q.codes = (fp8 ? at::nan_to_num(scaled, 0.0).to(at::kFloat8_e4m3fn) : to_e2m1(scaled))
                .reshape(x.sizes());
  q.spec = spec;
  return q;
}

at::Tensor dequantize_mx(const QuantizedTensor& q, c10::ScalarType dtype) {
  const at::Tensor codes = grouped(q.codes, q.spec);
  const at::Tensor values =
      (q.spec.grid == Grid::kMxfp8 ? codes.to(at::kFloat) : from_e2m1(codes)).to(dtype);
  const at::Tensor exponent = q.scale.to(at::kFloat);
  const at::Tensor scale = at::where(exponent.eq(kNan), std::numeric_limits<double>::quiet_NaN(),
                                     at::exp2(exponent.sub(kBias)))
                               .to(dtype);
  return values.mul(scale.unsqueeze(2)).reshape(q.codes.sizes());
}

}  // namespace narrowgauge::quantization
