#include "qat/learned_range.h"

#include <ATen/ops/full_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "quantization/affine.h"
#include "quantization/grouped.h"

namespace narrowgauge::qat {
namespace {

using quantization::AffineQparams;
using quantization::Granularity;
using quantization::MappingType;
using quantization::QuantizationSpec;
using quantization::ZeroPointDomain;

constexpr int kNumFactors = 21;
constexpr double kFactorStep = 0.025;

double middle_code(const QuantizationSpec& spec) {
  return has_zero_points(spec) ? static_cast<double>(spec.quant_min() + spec.quant_max() + 1) / 2
                               : 0.0;
}

double largest_step(const QuantizationSpec& spec) {
  return std::max(1.0, static_cast<double>(spec.quant_max()) - middle_code(spec));
}

double smallest_scale(const QuantizationSpec& spec, at::ScalarType dtype) {
  if (spec.eps != quantization::kEpsOfInput) {
    return spec.eps;
  }
  return dtype == at::kBFloat16 ? static_cast<float>(std::numeric_limits<c10::BFloat16>::epsilon())
                                : std::numeric_limits<float>::epsilon();
}

at::ScalarType wide_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

AffineQparams stored(const LearnedRange& range, const QuantizationSpec& spec,
                     at::ScalarType dtype) {
  return quantization::stored_qparams(
      {range.scale.detach().clamp_min(smallest_scale(spec, dtype)),
       range.zero_point.defined() ? range.zero_point.detach() : at::Tensor(),
       {}},
      spec, dtype);
}

// `range` times `factor` about its middle, which lies half a step below the middle code.
LearnedRange narrowed(const AffineQparams& range, double factor) {
  const at::Tensor scale = range.scale.mul(factor);
  return {scale, range.zero_point.defined()
                     ? range.zero_point.add(range.scale, 0.5 * (factor - 1.0))
                     : at::Tensor()};
}

}  // namespace

bool is_learned_range(std::string_view parameter) {
  const std::string_view name = parameter.substr(parameter.rfind('.') + 1);
  return name == kScaleName || name == kZeroPointName;
}

bool has_zero_points(const QuantizationSpec& spec) {
  return spec.zero_point_domain == ZeroPointDomain::kFloat;
}

std::string learned_range_obstacle(const QuantizationSpec& spec) {
  if (spec.grid != quantization::Grid::kAffine) {
    return "its scales are the format's own, not free numbers";
  }
  if (spec.float8_rows_first) {
    return "its rows are rounded to fp8 before they are quantized";
  }
  if (spec.granularity == Granularity::kPerTensor) {
    return "its scale spans all rows, which ranks divide among them";
  }
  if (spec.zero_point_domain == ZeroPointDomain::kInt) {
    return "its zero points are integers";
  }
  return "";
}

LearnedRange initial_range(const at::Tensor& weight, const QuantizationSpec& spec) {
  const at::Tensor x = weight.detach();
  const AffineQparams widest = quantization::choose_qparams_affine(x, spec);
  LearnedRange best;
  at::Tensor least;
  for (int i = 0; i < kNumFactors; ++i) {
    const LearnedRange range = narrowed(widest, 1.0 - kFactorStep * i);
    const at::Tensor error = quantization::grouped(
        fake_quantized_values(x, range, spec).sub(x).to(wide_dtype(x)).square(), spec);
    const at::Tensor of_group = error.sum({2});
    if (!best.scale.defined()) {
      best = range;
      least = of_group;
      continue;
    }
    const at::Tensor better = of_group.lt(least);
    best.scale = at::where(better, range.scale, best.scale);
    if (best.zero_point.defined()) {
      best.zero_point = at::where(better, range.zero_point, best.zero_point);
    }
    least = at::where(better, of_group, least);
  }
  best.scale = best.scale.to(x.scalar_type());
  if (best.zero_point.defined()) {
    best.zero_point = best.zero_point.to(x.scalar_type());
  }
  return best;
}

quantization::QuantizedTensor quantize(const at::Tensor& weight, const LearnedRange& range,
                                       const QuantizationSpec& spec) {
  const AffineQparams qparams = stored(range, spec, weight.scalar_type());
  quantization::QuantizedTensor q;
  q.codes = quantization::quantize_affine(weight, qparams, spec);
  q.scale = qparams.scale;
  if (qparams.zero_point.defined()) {
    q.zero_point = qparams.zero_point;
  }
  q.spec = spec;
  return q;
}

at::Tensor fake_quantized_values(const at::Tensor& weight, const LearnedRange& range,
                                 const QuantizationSpec& spec) {
  return quantization::dequantize(quantize(weight, range, spec), weight.scalar_type());
}

LearnedRangeGradients learned_range_gradients(const at::Tensor& grad, const at::Tensor& weight,
                                              const LearnedRange& range,
                                              const QuantizationSpec& spec) {
  const at::ScalarType wide = wide_dtype(weight);
  const AffineQparams qparams = stored(range, spec, weight.scalar_type());
  const at::Tensor clipped = quantization::clipped_affine(weight, qparams, spec);
  const at::Tensor steps = quantization::grouped(
      quantization::quantize_affine(weight, qparams, spec).to(wide).sub(middle_code(spec)), spec);
  at::Tensor x = quantization::grouped(weight.detach().to(wide), spec);
  if (qparams.zero_point.defined()) {
    x = x.sub(qparams.zero_point.to(wide).unsqueeze(2));
  }
  const at::Tensor is_clipped = quantization::grouped(clipped, spec);
  const at::Tensor of_scale =
      at::where(is_clipped, steps, steps.sub(x.div(qparams.scale.to(wide).unsqueeze(2))));
  const at::Tensor g = quantization::grouped(grad.to(wide), spec);
  const double factor =
      1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(1, g.size(2))) * largest_step(spec));
  LearnedRangeGradients result;
  result.weight = grad.masked_fill(clipped, 0);
  result.range.scale = g.mul(of_scale).sum({2}).mul_(factor).to(range.scale.scalar_type());
  if (range.zero_point.defined()) {
    result.range.zero_point = g.masked_fill(is_clipped.logical_not(), 0)
                                  .sum({2})
                                  .mul_(factor)
                                  .to(range.zero_point.scalar_type());
  }
  return result;
}

}  // namespace narrowgauge::qat
