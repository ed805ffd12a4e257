#include "quantization/nvfp4_grid.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "float8/formats.h"
#include "quantization/e2m1.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

constexpr double kSmallestBlockScale = 0.015625;  // torchao's E4M3_EPS: smallest normal e4m3

}  // namespace

QuantizedTensor quantize_nvfp4(const at::Tensor& x, const QuantizationSpec& spec) {
  const double largest_scale = float8::float8_max(at::kFloat8_e4m3fn);
  const at::Tensor groups = grouped(x.detach(), spec).to(at::kFloat);
  const bool empty = groups.numel() == 0;
  const at::Tensor amax = empty ? at::zeros({groups.size(0), groups.size(1)}, groups.options())
                                : groups.abs().amax({2});
  const at::Tensor tensor_amax = empty ? at::zeros({}, groups.options()) : amax.max();
  QuantizedTensor q;
  const at::Tensor outer = tensor_amax.div(largest_scale * kE2m1Max);
  q.outer_scale = at::where(outer.eq(0), 1.0, outer).to(at::kFloat).reshape({1, 1});
  q.scale = at::clamp(amax.div(kE2m1Max).div(*q.outer_scale), kSmallestBlockScale, largest_scale)
                .to(at::kFloat8_e4m3fn);
  const at::Tensor multiplier = q.outer_scale->reciprocal().div(q.scale.to(at::kFloat));
  q.codes = to_e2m1(groups.mul(multiplier.unsqueeze(2))).reshape(x.sizes());
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
