#include "quantization/equalization.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "quantization/affine.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

constexpr int kAlphaSteps = 20;
constexpr int kClipSteps = 10;  // of 0.05, from 1 to 0.5
constexpr double kSmallest = 1e-4;

at::Tensor with_fallback(const at::Tensor& factor) {
  return at::where(factor.isfinite().logical_and(factor.gt(0)), factor, at::ones_like(factor));
}

// The diagonal blocks of the Hessian: [groups, columns, columns].
at::Tensor group_hessians(const at::Tensor& hessian, int64_t columns) {
  const int64_t groups = hessian.size(0) / columns;
  return hessian.view({groups, columns, groups, columns})
      .diagonal(0, 0, 2)
      .permute({2, 0, 1})
      .contiguous();
}

}  // namespace

AwqScale awq_scale(const at::Tensor& weight, const InputStatistics& inputs,
                   const at::Tensor& mean_abs, const QuantizationSpec& spec) {
  const at::NoGradGuard no_grad;
  const at::Tensor values = weight.to(at::kFloat);
  AwqScale best;
  best.error = INFINITY;
  for (int step = 0; step < kAlphaSteps; ++step) {
    const double alpha = static_cast<double>(step) / kAlphaSteps;
    at::Tensor factor = mean_abs.pow(alpha).clamp_min(kSmallest);
    factor = with_fallback(factor.div(factor.max().mul(factor.min()).sqrt()));
    const at::Tensor scaled = values.mul(factor).to(weight.scalar_type());
    const at::Tensor rounded = fake_quantize(scaled, spec).to(at::kFloat).div(factor);
    const double error = inputs.output_error(rounded.sub(values));
    best.nearest_error = step == 0 ? error : best.nearest_error;
    if (error < best.error) {
      best.factor = factor;
      best.alpha = alpha;
      best.error = error;
    }
  }
  TORCH_CHECK(best.factor.defined(), "AWQ: expected finite weights and inputs");
  return best;
}

QuantizedTensor quantize_clipped(const at::Tensor& weight, const InputStatistics& inputs,
                                 const QuantizationSpec& spec) {
  const at::NoGradGuard no_grad;
  TORCH_CHECK(spec.grid == Grid::kAffine && spec.granularity != Granularity::kPerTensor,
              "AWQ: expected an integer scheme per row or group, got ", describe(spec));
  const at::Tensor groups = grouped(weight.to(at::kFloat), spec);
  const at::Tensor hessians = group_hessians(inputs.hessian(), groups.size(2));
  QuantizedTensor best = quantize(weight, spec);
  at::Tensor best_error;
  for (int step = 0; step <= kClipSteps; ++step) {
    const double share = 1.0 - 0.05 * step;
    const at::Tensor high = groups.amax({2}, true).mul(share);
    const at::Tensor low = groups.amin({2}, true).mul(share);
    const at::Tensor clipped = at::minimum(at::maximum(groups, low), high)
                                   .reshape(weight.sizes())
                                   .to(weight.scalar_type());
    QuantizedTensor q = step == 0 ? best : quantize(clipped, spec);
    const at::Tensor change =
        grouped(dequantize(q, at::kFloat), spec).sub(groups).transpose(0, 1);  // [groups, rows, c]
    const at::Tensor error = at::bmm(change, hessians).mul(change).sum(-1).t();  // [rows, groups]
    if (step == 0) {
      best_error = error;
      continue;
    }
    const at::Tensor is_better = error.lt(best_error);
    best_error = at::where(is_better, error, best_error);
    best.scale = at::where(is_better, q.scale, best.scale);
    if (best.zero_point) {
      best.zero_point = at::where(is_better, *q.zero_point, *best.zero_point);
    }
    best.codes =
        at::where(is_better.unsqueeze(2), grouped(q.codes, spec), grouped(best.codes, spec))
            .reshape(weight.sizes());
  }
  return best;
}

at::Tensor smooth_quant_scale(const at::Tensor& weight, const at::Tensor& max_abs, double alpha) {
  const at::Tensor sizes = weight.to(at::kFloat).abs().amax(0).clamp_min(1e-5);
  return with_fallback(
      max_abs.clamp_min(1e-5).pow(alpha).div(sizes.pow(1 - alpha)).clamp_min(1e-5));
}

}  // namespace narrowgauge::quantization
