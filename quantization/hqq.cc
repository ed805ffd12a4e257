#include "quantization/hqq.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "quantization/affine.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

constexpr int kSteps = 20;
constexpr double kNorm = 0.7;
constexpr double kBeta = 10.0;
constexpr double kKappa = 1.01;

double middle_code(const QuantizationSpec& spec) {
  return static_cast<double>(spec.quant_max() + spec.quant_min() + 1) / 2;
}

// argmin over e of |e|^p + beta / 2 (e - x)^2, as the paper approximates it.
at::Tensor shrink(const at::Tensor& x, double beta) {
  const at::Tensor size = x.abs();
  return x.sign().mul(size.sub(size.pow(kNorm - 1).div(beta)).clamp_min(0)).nan_to_num(0);
}

// values: [rows, groups, columns]; scale, zero: [rows, groups, 1]. zero is a code, not rounded.
at::Tensor fitted_zero(const at::Tensor& values, const at::Tensor& scale, at::Tensor zero,
                       const QuantizationSpec& spec) {
  double beta = kBeta;
  double best = INFINITY;
  at::Tensor best_zero = zero;
  for (int step = 0; step < kSteps; ++step, beta *= kKappa) {
    const at::Tensor codes =
        values.div(scale).add(zero).round().clamp(spec.quant_min(), spec.quant_max());
    const at::Tensor error = values.sub(codes.sub(zero).mul(scale));
    const double mean = error.abs().mean().item<double>();
    if (!(mean < best)) {
      break;
    }
    best = mean;
    best_zero = zero;
    zero = codes.sub(values.sub(shrink(error, beta)).div(scale)).mean({2}, true);
  }
  return best_zero;
}

at::Tensor fitted_scale(const at::Tensor& values, at::Tensor scale, const QuantizationSpec& spec) {
  for (int step = 0; step < kSteps; ++step) {
    const at::Tensor codes = values.div(scale).round().clamp(spec.quant_min(), spec.quant_max());
    const at::Tensor squares = codes.square().sum({2}, true);
    const at::Tensor next = values.mul(codes).sum({2}, true).div(squares);
    scale = at::where(squares.gt(0).logical_and(next.gt(0)), next, scale);
  }
  return scale;
}

at::Tensor squared_error(const at::Tensor& values, const AffineQparams& qparams,
                         const QuantizationSpec& spec) {
  const at::Tensor codes = quantize_affine(values, qparams, spec);
  const at::Tensor error = dequantize_affine(codes, qparams, spec, at::kFloat).sub(values);
  return grouped(error, spec).square().sum(2);
}

}  // namespace

QuantizedTensor hqq(const at::Tensor& weight, const QuantizationSpec& spec) {
  const at::NoGradGuard no_grad;
  check_spec(spec);
  TORCH_CHECK(spec.grid == Grid::kAffine && spec.granularity != Granularity::kPerTensor,
              "HQQ: expected an integer scheme per row or group, got ", describe(spec));
  const QuantizedTensor nearest = quantize(weight, spec);
  const at::Tensor values = weight.to(at::kFloat);
  const at::Tensor groups = grouped(values, spec);
  const AffineQparams range = {
      nearest.scale.to(at::kFloat), nearest.zero_point.value_or(at::Tensor()), {}};
  const at::Tensor scale = range.scale.unsqueeze(2);
  AffineQparams fitted = range;
  switch (spec.zero_point_domain) {
    case ZeroPointDomain::kNone:
      fitted.scale = fitted_scale(groups, scale, spec).squeeze(2);
      break;
    case ZeroPointDomain::kInt:
      fitted.zero_point =
          fitted_zero(groups, scale, range.zero_point.to(at::kFloat).unsqueeze(2), spec)
              .squeeze(2)
              .round()
              .clamp(spec.quant_min(), spec.quant_max());
      break;
    case ZeroPointDomain::kFloat: {
      const double middle = middle_code(spec);
      const at::Tensor zero =
          range.zero_point.to(at::kFloat).unsqueeze(2).div(scale).neg().add(middle);
      fitted.zero_point =
          fitted_zero(groups, scale, zero, spec).neg().add(middle).mul(scale).squeeze(2);
      break;
    }
  }
  const AffineQparams stored = stored_qparams(fitted, spec, weight.scalar_type());
  const AffineQparams wide = {stored.scale.to(at::kFloat), stored.zero_point, {}};
  const at::Tensor is_better =
      squared_error(values, wide, spec).lt(squared_error(values, range, spec));
  QuantizedTensor q = nearest;
  q.scale = at::where(is_better, stored.scale, nearest.scale);
  AffineQparams kept = {q.scale.to(at::kFloat), {}, {}};
  if (q.zero_point) {
    q.zero_point = at::where(is_better, stored.zero_point, *nearest.zero_point);
    kept.zero_point = *q.zero_point;
  }
  q.codes = quantize_affine(values, kept, spec);
  return q;
}

}  // namespace narrowgauge::quantization
