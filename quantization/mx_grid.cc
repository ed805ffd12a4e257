#include "quantization/mx_grid.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/where.h>

#include <limits>

#include "float8/formats.h"
#include "quantization/e2m1.h"
#include "quantization/group_factors.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

constexpr int64_t kBias = 127;
constexpr int64_t kNan = 255;

}  // namespace

QuantizedTensor quantize_mx(const at::Tensor& x, const QuantizationSpec& spec) {
  const bool fp8 = spec.grid == Grid::kMxfp8;
  const double largest = fp8 ? float8::float8_max(at::kFloat8_e4m3fn) : kE2m1Max;
  const GroupFactors factors = group_factors(largest_of_groups(x, spec), spec, x.scalar_type());
  const at::Tensor scaled = at::clamp(
      grouped(x.detach(), spec).to(at::kFloat).mul(factors.before.unsqueeze(2)), -largest, largest);
  QuantizedTensor q;
  q.scale = factors.scale;
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
