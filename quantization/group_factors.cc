#include "quantization/group_factors.h"

#include <ATen/ops/argmax.h>
#include <ATen/ops/ceil.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/log2.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "float8/formats.h"
#include "quantization/e2m1.h"
#include "quantization/exact_division.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

double e4m3_max() { return float8::float8_max(at::kFloat8_e4m3fn); }

// torchao's _choose_scale_float8: amax / 448 in x's dtype, kept as fp32.
GroupFactors float8_factors(const at::Tensor& largest, const QuantizationSpec& spec,
                            c10::ScalarType dtype) {
  const at::Tensor amax = at::clamp_min(largest.to(dtype).abs(), spec.eps);
  const at::Tensor scale = divided(amax, e4m3_max()).to(at::kFloat);
  return {scale, scale, scale};
}

// torchao's _to_mx_rceil: ceil(log2(amax / largest value)), which saturates
// nothing.
GroupFactors mx_factors(const at::Tensor& largest, double largest_value) {
  constexpr int64_t kBias = 127;
  constexpr int64_t kNan = 255;
  const at::Tensor amax = largest.to(at::kFloat).abs();
  const at::Tensor exponent =
      at::clamp(at::ceil(at::log2(divided(amax, largest_value))), -kBias, kBias).add(kBias);
  const at::Tensor code =
      at::where(at::isfinite(amax), at::nan_to_num(exponent, kNan), static_cast<double>(kNan));
  // 2^-127, exponent 0, has no fp32 reciprocal of full precision; torchao
  // takes 1.
  const at::Tensor before = at::where(code.eq(0), 1.0, at::exp2(code.neg().add(kBias)));
  const at::Tensor after =
      at::where(code.eq(kNan), std::numeric_limits<double>::quiet_NaN(), at::exp2(code.sub(kBias)));
  return {before.to(at::kFloat), after.to(at::kFloat), code.to(at::kByte)};
}

// A scale's reciprocal. That of a scale so small that it has none in fp32 is 0, as that of 0: the
// codes are 0 then, where infinity would make NaN of a zero.
at::Tensor finite_or_zero(const at::Tensor& reciprocal) {
  return at::where(at::isfinite(reciprocal), reciprocal, 0.0);
}

// torchao's nvfp4_quantize with a scale for the tensor, amax / (448 * 6); a
// tensor of zeros has 1.
GroupFactors nvfp4_factors(const at::Tensor& largest) {
  constexpr double kSmallestScale = 0.015625;  // torchao's E4M3_EPS: smallest normal e4m3
  const at::Tensor amax = largest.to(at::kFloat).abs();
  const at::Tensor tensor_amax = amax.numel() == 0 ? at::zeros({}, amax.options()) : amax.max();
  const at::Tensor ratio = divided(tensor_amax, e4m3_max() * kE2m1Max);
  GroupFactors factors;
  factors.outer_scale = at::where(ratio.eq(0), 1.0, ratio).to(at::kFloat).reshape({1, 1});
  factors.scale = at::clamp(divided(amax, kE2m1Max).div(factors.outer_scale.expand_as(amax)),
                            kSmallestScale, e4m3_max())
                      .to(at::kFloat8_e4m3fn);
  const at::Tensor scale = factors.scale.to(at::kFloat);
  factors.before = finite_or_zero(factors.outer_scale.reciprocal().div(scale));
  factors.after = factors.outer_scale.mul(scale);
  return factors;
}

// ggml-quants.c: codes are taken with d in fp32, values with d rounded to fp16;
// 0 gives zeros.
GroupFactors gguf_factors(const at::Tensor& d) {
  const at::Tensor scale = d.to(at::kHalf);
  return {finite_or_zero(d.reciprocal()), scale.to(at::kFloat), scale};
}

}  // namespace

GroupFactors group_factors(const at::Tensor& largest, const QuantizationSpec& spec,
                           c10::ScalarType dtype) {
  switch (spec.grid) {
    case Grid::kFloat8:
      return float8_factors(largest, spec, dtype);
    case Grid::kMxfp8:
      return mx_factors(largest, e4m3_max());
    case Grid::kMxfp4:
      return mx_factors(largest, kE2m1Max);
    case Grid::kNvfp4:
      return nvfp4_factors(largest);
    case Grid::kGgufQ4_0:
      return gguf_factors(divided(largest.to(at::kFloat), -8.0));
    case Grid::kGgufQ8_0:
      return gguf_factors(divided(largest.to(at::kFloat).abs(), 127.0));
    case Grid::kAffine:
      break;
  }
  TORCH_CHECK(false, "expected a grid of scaled values, got ", describe(spec));
}

at::Tensor largest_of_groups(const at::Tensor& x, const QuantizationSpec& spec) {
  const at::Tensor groups = grouped(x.detach(), spec);
  if (groups.numel() == 0) {
    return at::zeros({groups.size(0), groups.size(1)}, groups.options());
  }
  const at::Tensor largest = groups.abs().argmax(2, /*keepdim=*/true);
  return groups.gather(2, largest).squeeze(2);
}

}  // namespace narrowgauge::quantization
