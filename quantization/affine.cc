#include "quantization/affine.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/amin.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/round.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "quantization/exact_division.h"
#include "quantization/grouped.h"

namespace narrowgauge::quantization {
namespace {

double smallest_scale(const QuantizationSpec& spec, at::ScalarType dtype) {
  if (spec.eps != kEpsOfInput) {
    return spec.eps;
  }
  switch (dtype) {
    case at::kBFloat16:
      return std::numeric_limits<c10::BFloat16>::epsilon();
    case at::kHalf:
      return std::numeric_limits<c10::Half>::epsilon();
    default:
      return std::numeric_limits<float>::epsilon();
  }
}

double middle_code(const QuantizationSpec& spec) {
  return static_cast<double>(spec.quant_max() + spec.quant_min() + 1) / 2;
}

struct Range {
  at::Tensor min;
  at::Tensor max;
};

// Of each group, [rows, groups]; zero for an empty one.
Range range_of(const at::Tensor& x, const QuantizationSpec& spec) {
  const at::Tensor groups = grouped(x, spec);
  if (groups.numel() == 0) {
    const at::Tensor none = at::zeros({groups.size(0), groups.size(1)}, groups.options());
    return {none, none};
  }
  return {groups.amin({2}), groups.amax({2})};
}

AffineQparams symmetric_qparams(const Range& range, const QuantizationSpec& spec, double eps) {
  const at::Tensor negative = at::clamp(range.min, {}, 0.0);
  const at::Tensor positive = at::clamp_min(range.max, 0.0);
  at::Tensor scale;
  switch (spec.mapping) {
    case MappingType::kSymmetricNoClippingError: {
      const at::Tensor below = divided(negative, static_cast<double>(spec.quant_min()));
      const at::Tensor above = divided(positive, static_cast<double>(spec.quant_max()));
      scale = at::where(below.gt(above), below, above);
      break;
    }
    case MappingType::kSymmetricFullRange:
      scale =
          divided(at::maximum(negative.neg(), positive), -static_cast<double>(spec.quant_min()));
      break;
    default:
      scale = divided(at::maximum(negative.neg(), positive),
                      static_cast<double>(spec.quant_max() - spec.quant_min()) / 2);
  }
  scale = at::clamp_min(scale, eps);
  if (spec.zero_point_domain == ZeroPointDomain::kNone) {
    return {scale, {}, {}};
  }
  return {scale, at::full_like(scale, middle_code(spec)), {}};
}

AffineQparams asymmetric_qparams(const Range& range, const QuantizationSpec& spec, double eps) {
  const at::Tensor negative = at::clamp(range.min, {}, 0.0);
  const at::Tensor positive = at::clamp_min(range.max, 0.0);
  const double steps = static_cast<double>(spec.quant_max() - spec.quant_min());
  const at::Tensor scale = at::clamp_min(divided(positive.sub(negative), steps), eps);
  const at::Tensor shift = at::round(negative.div(scale));
  const at::Tensor zero_point =
      at::clamp(shift.neg().add(spec.quant_min()), spec.quant_min(), spec.quant_max());
  return {scale, zero_point, {}};
}

AffineQparams float_domain_qparams(const Range& range, const QuantizationSpec& spec, double eps) {
  const double steps = static_cast<double>(spec.quant_max() - spec.quant_min());
  const at::Tensor scale = divided(at::clamp_min(range.max.sub(range.min), eps), steps);
  return {scale, range.min.add(scale.mul(middle_code(spec))), range.min};
}

at::ScalarType code_dtype(const QuantizationSpec& spec) {
  return spec.is_signed ? at::kChar : at::kByte;
}

// NaN, which no integer stands for, becomes a code; what it is multiplied by is
// NaN or infinite.
at::Tensor to_codes(const at::Tensor& values, const QuantizationSpec& spec) {
  return at::nan_to_num(at::clamp(values, spec.quant_min(), spec.quant_max()), 0.0)
      .to(code_dtype(spec));
}

// Before they are clamped: [rows, groups, columns of a group], floating.
at::Tensor rounded_codes(const at::Tensor& x, const AffineQparams& qparams,
                         const QuantizationSpec& spec) {
  const at::Tensor values = grouped(x.detach(), spec);
  if (spec.zero_point_domain == ZeroPointDomain::kFloat) {
    const at::Tensor wide = qparams.scale.to(at::kFloat);
    const at::Tensor lowest =
        qparams.lowest.defined()
            ? qparams.lowest
            : qparams.zero_point.to(at::kFloat).sub(wide.mul(middle_code(spec)));
    return at::round(values.to(at::kFloat).sub(lowest.unsqueeze(2)).div(wide.unsqueeze(2)));
  }
  const at::Tensor codes = at::round(values.mul(qparams.scale.unsqueeze(2).reciprocal()));
  return qparams.zero_point.defined() ? codes.add(qparams.zero_point.unsqueeze(2)) : codes;
}

}  // namespace

AffineQparams choose_qparams_affine(const at::Tensor& x, const QuantizationSpec& spec) {
  const double eps = smallest_scale(spec, x.scalar_type());
  if (spec.zero_point_domain == ZeroPointDomain::kFloat) {
    return float_domain_qparams(range_of(x.detach().to(at::kFloat), spec), spec, eps);
  }
  const Range range = range_of(x.detach(), spec);
  return spec.mapping == MappingType::kAsymmetric ? asymmetric_qparams(range, spec, eps)
                                                  : symmetric_qparams(range, spec, eps);
}

AffineQparams stored_qparams(const AffineQparams& qparams, const QuantizationSpec& spec,
                             c10::ScalarType input_dtype) {
  const auto dtype_or_input = [&](c10::ScalarType dtype) {
    return dtype == kInputDtype ? input_dtype : dtype;
  };
  AffineQparams stored;
  stored.scale = qparams.scale.to(dtype_or_input(spec.scale_dtype));
  if (spec.zero_point_domain == ZeroPointDomain::kInt) {
    stored.zero_point = at::nan_to_num(qparams.zero_point, 0.0).to(code_dtype(spec));
  } else if (spec.zero_point_domain == ZeroPointDomain::kFloat) {
    stored.zero_point = qparams.zero_point.to(dtype_or_input(spec.zero_point_dtype));
  }
  return stored;
}

at::Tensor quantize_affine(const at::Tensor& x, const AffineQparams& qparams,
                           const QuantizationSpec& spec) {
  return to_codes(rounded_codes(x, qparams, spec), spec).reshape(x.sizes());
}

at::Tensor clipped_affine(const at::Tensor& x, const AffineQparams& qparams,
                          const QuantizationSpec& spec) {
  const at::Tensor codes = rounded_codes(x, qparams, spec);
  return codes.lt(spec.quant_min()).logical_or(codes.gt(spec.quant_max())).reshape(x.sizes());
}

at::Tensor dequantize_affine(const at::Tensor& codes, const AffineQparams& qparams,
                             const QuantizationSpec& spec, c10::ScalarType dtype) {
  const at::Tensor scale = qparams.scale.unsqueeze(2);
  at::Tensor values = grouped(codes, spec);
  if (spec.zero_point_domain == ZeroPointDomain::kFloat) {
    values = values.to(at::kFloat)
                 .sub(middle_code(spec))
                 .mul(scale.to(at::kFloat))
                 .add(qparams.zero_point.to(at::kFloat).unsqueeze(2));
  } else {
    values = values.to(dtype);
    if (qparams.zero_point.defined()) {
      values = values.sub(qparams.zero_point.to(dtype).unsqueeze(2));
    }
    values = values.mul(scale);
  }
  return values.to(dtype).reshape(codes.sizes());
}

}  // namespace narrowgauge::quantization
