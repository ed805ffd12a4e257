#include "quantization/quantized_tensor.h"

#include <ATen/ops/aminmax.h>

#include "quantization/affine.h"
#include "quantization/float8_grid.h"
#include "quantization/gguf_grid.h"
#include "quantization/mx_grid.h"
#include "quantization/nvfp4_grid.h"

namespace narrowgauge::quantization {
namespace {

QuantizedTensor quantize_affine_tensor(const at::Tensor& x, const QuantizationSpec& spec) {
  const at::Tensor values = spec.float8_rows_first ? round_rows_to_float8(x) : x;
  const AffineQparams chosen = choose_qparams_affine(values, spec);
  const AffineQparams stored = stored_qparams(chosen, spec, x.scalar_type());
  // MSLK takes its codes with scales that are not yet rounded, torchao's with
  // rounded ones.
  const bool float_domain = spec.zero_point_domain == ZeroPointDomain::kFloat;
  QuantizedTensor q;
  q.codes = quantize_affine(values, float_domain ? chosen : stored, spec);
  q.scale = stored.scale;
  if (stored.zero_point.defined()) {
    q.zero_point = stored.zero_point;
  }
  q.spec = spec;
  return q;
}

at::Tensor dequantize_affine_tensor(const QuantizedTensor& q, c10::ScalarType dtype) {
  return dequantize_affine(q.codes, {q.scale, q.zero_point.value_or(at::Tensor()), {}}, q.spec,
                           dtype);
}

// What the tensors of a grid are.
struct Layout {
  at::ScalarType codes;
  at::ScalarType scale;  // Undefined: any floating dtype
  bool zero_point = false;
  bool outer_scale = false;
};

Layout layout_of(const QuantizationSpec& spec) {
  switch (spec.grid) {
    case Grid::kAffine:
      return {spec.is_signed ? at::kChar : at::kByte, at::ScalarType::Undefined,
              spec.zero_point_domain != ZeroPointDomain::kNone, false};
    case Grid::kFloat8:
      return {at::kFloat8_e4m3fn, at::kFloat};
    case Grid::kMxfp8:
      return {at::kFloat8_e4m3fn, at::kByte};
    case Grid::kMxfp4:
      return {at::kByte, at::kByte};
    case Grid::kNvfp4:
      return {at::kByte, at::kFloat8_e4m3fn, false, true};
    case Grid::kGgufQ4_0:
      return {at::kByte, at::kHalf};
    case Grid::kGgufQ8_0:
      return {at::kChar, at::kHalf};
  }
  TORCH_CHECK(false, "expected a grid, got ", static_cast<int>(spec.grid));
}

std::vector<int64_t> scale_sizes(const QuantizedTensor& q) {
  if (q.spec.granularity == Granularity::kPerTensor) {
    return {1, 1};
  }
  const int64_t cols = q.codes.size(-1);
  const int64_t group = group_columns(q.spec, cols);
  return {cols == 0 ? 0 : q.codes.numel() / cols, group == 0 ? 0 : cols / group};
}

// Codes that do not fill their bytes lie in the grid's range: packing two to a byte relies on it.
void check_code_range(const QuantizedTensor& q) {
  const bool is_affine = q.spec.grid == Grid::kAffine;
  const bool has_all_of_a_byte = is_affine ? q.spec.bits == 8 : q.codes.scalar_type() != at::kByte;
  if (has_all_of_a_byte || q.codes.numel() == 0 || q.codes.is_meta()) {
    return;
  }
  const int64_t least = is_affine ? q.spec.quant_min() : 0;
  const int64_t most = is_affine ? q.spec.quant_max() : 15;
  const auto [smallest, largest] = at::aminmax(q.codes);
  TORCH_CHECK(smallest.item<int64_t>() >= least && largest.item<int64_t>() <= most,
              "expected codes of ", least, " to ", most, ", got ", smallest.item<int64_t>(), " to ",
              largest.item<int64_t>());
}

}  // namespace

QuantizedTensor quantize(const at::Tensor& x, const QuantizationSpec& spec) {
  check_spec(spec);
  TORCH_CHECK(at::isFloatingType(x.scalar_type()), "expected a floating tensor, got ", x.dtype());
  switch (spec.grid) {
    case Grid::kAffine:
      return quantize_affine_tensor(x, spec);
    case Grid::kFloat8:
      return quantize_float8(x, spec);
    case Grid::kMxfp8:
    case Grid::kMxfp4:
      return quantize_mx(x, spec);
    case Grid::kNvfp4:
      return quantize_nvfp4(x, spec);
    case Grid::kGgufQ4_0:
    case Grid::kGgufQ8_0:
      return quantize_gguf(x, spec);
  }
  TORCH_CHECK(false, "expected a grid, got ", static_cast<int>(spec.grid));
}

at::Tensor dequantize(const QuantizedTensor& q, c10::ScalarType dtype) {
  switch (q.spec.grid) {
    case Grid::kAffine:
      return dequantize_affine_tensor(q, dtype);
    case Grid::kFloat8:
      return dequantize_float8(q, dtype);
    case Grid::kMxfp8:
    case Grid::kMxfp4:
      return dequantize_mx(q, dtype);
    case Grid::kNvfp4:
      return dequantize_nvfp4(q, dtype);
    case Grid::kGgufQ4_0:
    case Grid::kGgufQ8_0:
      return dequantize_gguf(q, dtype);
  }
  TORCH_CHECK(false, "expected a grid, got ", static_cast<int>(q.spec.grid));
}

at::Tensor fake_quantize(const at::Tensor& x, const QuantizationSpec& spec) {
  return dequantize(quantize(x, spec), x.scalar_type());
}

bool can_clip(const QuantizationSpec& spec) {
  if (spec.grid == Grid::kGgufQ4_0) {
    return true;  // the side opposite to the largest magnitude has seven codes,
                  // not eight
  }
  // With a float zero point the ends of the range are codes, up to rounding.
  return spec.grid == Grid::kAffine && spec.zero_point_domain != ZeroPointDomain::kFloat;
}

at::Tensor clipped(const at::Tensor& x, const QuantizationSpec& spec) {
  if (!can_clip(spec)) {
    return {};
  }
  if (spec.grid == Grid::kGgufQ4_0) {
    return clipped_q4_0(x, spec);
  }
  const at::Tensor values = spec.float8_rows_first ? round_rows_to_float8(x.detach()) : x;
  const AffineQparams stored =
      stored_qparams(choose_qparams_affine(values, spec), spec, x.scalar_type());
  return clipped_affine(values, stored, spec);
}

QuantizedTensor rows(const QuantizedTensor& q, int64_t begin, int64_t end) {
  TORCH_CHECK(q.codes.dim() == 2 && begin >= 0 && begin <= end && end <= q.codes.size(0),
              "expected rows [", begin, ", ", end, ") of a matrix, got sizes ", q.codes.sizes());
  QuantizedTensor part = q;
  part.codes = q.codes.slice(0, begin, end);
  if (q.spec.granularity != Granularity::kPerTensor) {
    part.scale = q.scale.slice(0, begin, end);
    if (q.zero_point) {
      part.zero_point = q.zero_point->slice(0, begin, end);
    }
  }
  return part;
}

void check_quantized_tensor(const QuantizedTensor& q) {
  check_spec(q.spec);
  const Layout layout = layout_of(q.spec);
  const auto expect_sizes = [](const at::Tensor& tensor, const std::vector<int64_t>& sizes,
                               const char* what) {
    TORCH_CHECK(tensor.defined() && tensor.sizes() == at::IntArrayRef(sizes), "expected ", what,
                " ", at::IntArrayRef(sizes), ", got ",
                tensor.defined() ? tensor.sizes() : at::IntArrayRef());
  };
  TORCH_CHECK(q.codes.defined() && q.codes.dim() >= 1 && q.codes.scalar_type() == layout.codes,
              "expected codes of ", layout.codes, " with at least one dimension");
  const std::vector<int64_t> sizes = scale_sizes(q);
  expect_sizes(q.scale, sizes, "scale");
  const bool scale_fits = layout.scale == at::ScalarType::Undefined
                              ? at::isFloatingType(q.scale.scalar_type())
                              : q.scale.scalar_type() == layout.scale;
  TORCH_CHECK(scale_fits, "expected scale of ", layout.scale, ", got ", q.scale.scalar_type());
  TORCH_CHECK(q.zero_point.has_value() == layout.zero_point, "expected ",
              layout.zero_point ? "a" : "no", " zero_point");
  if (q.zero_point) {
    expect_sizes(*q.zero_point, sizes, "zero_point");
  }
  TORCH_CHECK(q.outer_scale.has_value() == layout.outer_scale, "expected ",
              layout.outer_scale ? "an" : "no", " outer_scale");
  if (q.outer_scale) {
    expect_sizes(*q.outer_scale, {1, 1}, "outer_scale");
  }
  check_code_range(q);
}

}  // namespace narrowgauge::quantization
