#include "float8/scaling.h"

#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/ceil.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/floor.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/log2.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "cuda/launch_scope.h"
#include "float8/cuda_dispatch.h"
#include "float8/formats.h"
#include "float8/row_strips.h"
#include "nn/kernel_dispatch.h"
#include "nn/known_amax.h"

namespace narrowgauge::float8 {
namespace {

constexpr double kEps = 1e-12;  // torchao's EPS
constexpr int64_t kE8m0Bias = 127;
constexpr int64_t kE8m0Nan = 255;

bool is_e8m0(ScaleRounding rounding) {
  return rounding == ScaleRounding::kE8m0Floor || rounding == ScaleRounding::kE8m0Rceil;
}

int64_t ceil_div(int64_t a, int64_t b) { return b == 0 ? 0 : (a + b - 1) / b; }

at::Tensor tensor_to_amax_on_cuda(const at::Tensor& x, ScalingGranularity granularity,
                                  int64_t dim) {
  if (granularity == ScalingGranularity::kTensorwise) {
    if (at::Tensor known = nn::take_known_amax(x); known.defined()) {
      return known;
    }
  }
  const cuda::LaunchScope scope(x);
  const GroupShape group = group_shape(granularity, dim, x.sizes());
  const int64_t num_rows = ceil_div(x.size(0), group.rows);
  const int64_t num_cols = ceil_div(x.size(1), group.cols);
  const auto options = x.options().dtype(at::kFloat).requires_grad(false);
  const at::Tensor amax = granularity == ScalingGranularity::kTensorwise
                              ? at::empty({}, options)
                              : at::empty({num_rows, num_cols}, options);
  const at::Tensor packed = x.detach().contiguous();
  with_cuda_elements(packed, [&](const auto* data) {
    kernels::tensor_to_amax(data, x.size(0), x.size(1), {group.rows, group.cols, num_cols},
                            amax.mutable_data_ptr<float>(), amax.numel(), scope.stream());
  });
  return amax;
}

}  // namespace

void check_cast_spec(const CastSpec& spec) {
  TORCH_CHECK(is_float8(spec.dtype), "expected float8_e4m3fn or float8_e5m2, got ", spec.dtype);
  TORCH_CHECK(is_e8m0(spec.rounding) == (spec.granularity == ScalingGranularity::kBlockwise1x32),
              "expected e8m0 rounding for blocks of 1x32 and for no other granularity");
}

GroupShape group_shape(ScalingGranularity granularity, int64_t dim, at::IntArrayRef sizes) {
  TORCH_CHECK(sizes.size() == 2, "expected a matrix, got sizes ", sizes);
  TORCH_CHECK(dim >= -2 && dim <= 1, "expected dim in [-2, 1], got ", dim);
  const bool along_rows = dim == 1 || dim == -1;
  const auto along = [&](int64_t block) {
    return along_rows ? GroupShape{1, block} : GroupShape{block, 1};
  };
  switch (granularity) {
    case ScalingGranularity::kTensorwise:
      return {sizes[0], sizes[1]};
    case ScalingGranularity::kAxiswise:
      return along(along_rows ? sizes[1] : sizes[0]);
    case ScalingGranularity::kBlockwise1x128:
      return along(128);
    case ScalingGranularity::kBlockwise128x128:
      return {128, 128};
    case ScalingGranularity::kBlockwise1x32:
      return along(32);
  }
  TORCH_CHECK(false, "expected a granularity, got ", static_cast<int>(granularity));
}

at::Tensor expand_scales(const at::Tensor& scales, ScalingGranularity granularity, int64_t dim,
                         at::IntArrayRef sizes) {
  if (granularity == ScalingGranularity::kTensorwise) {
    return scales.expand(sizes);
  }
  const GroupShape group = group_shape(granularity, dim, sizes);
  const int64_t num_rows = scales.size(0);
  const int64_t num_cols = scales.size(1);
  return scales.unsqueeze(1)
      .unsqueeze(3)
      .expand({num_rows, group.rows, num_cols, group.cols})
      .reshape({num_rows * group.rows, num_cols * group.cols})
      .narrow(0, 0, sizes[0])
      .narrow(1, 0, sizes[1]);
}

at::Tensor tensor_to_amax_reference(const at::Tensor& x, ScalingGranularity granularity,
                                    int64_t dim) {
  const GroupShape group = group_shape(granularity, dim, x.sizes());
  const bool tensorwise = granularity == ScalingGranularity::kTensorwise;
  // A dimension of size 0 that a group spans still has one group; one that blocks divide has none.
  const auto groups = [](int64_t size, int64_t block) {
    return size == block ? 1 : ceil_div(size, block);
  };
  const int64_t num_rows = groups(x.size(0), group.rows);
  const int64_t num_cols = groups(x.size(1), group.cols);
  if (x.numel() == 0) {
    const auto options = x.options().dtype(at::kFloat);
    return tensorwise ? at::zeros({}, options) : at::zeros({num_rows, num_cols}, options);
  }
  const at::Tensor padded = at::constant_pad_nd(
      x.detach().to(at::kFloat),
      {0, num_cols * group.cols - x.size(1), 0, num_rows * group.rows - x.size(0)});
  const at::Tensor amax =
      padded.reshape({num_rows, group.rows, num_cols, group.cols}).abs().amax({1, 3});
  return tensorwise ? amax.reshape({}) : amax;
}

at::Tensor tensor_to_amax(const at::Tensor& x, ScalingGranularity granularity, int64_t dim) {
  if (has_cuda_kernel(x)) {
    return tensor_to_amax_on_cuda(x, granularity, dim);
  }
  if (!runs_cpu_kernel(x)) {
    return tensor_to_amax_reference(x, granularity, dim);
  }
  const ScaleGrid grid(granularity, dim, x.sizes());
  const at::Tensor values = readable_by_kernels(x);
  const int64_t cols = x.size(1);
  const at::Tensor amax = empty_strip_amax(values, grid);
  nn::with_element_type(values, [&](auto element) {
    const auto* data = nn::const_pointer<decltype(element)>(values);
    for_each_strip(x.size(0), cols, [&](int64_t index, int64_t row, int64_t num_rows) {
      kernels::amax(data + row * cols, num_rows, cols, grid.groups(),
                    strip_amax(amax, grid, index, row));
    });
  });
  const at::Tensor result = merged_amax(amax, grid);
  return granularity == ScalingGranularity::kTensorwise ? result.reshape({}) : result;
}

at::Tensor amax_to_scale(const at::Tensor& amax, const CastSpec& spec) {
  check_cast_spec(spec);
  TORCH_CHECK(!is_e8m0(spec.rounding), "expected a rounding to fp32; for e8m0 see amax_to_e8m0");
  const at::Tensor wide = at::clamp(amax.to(at::kDouble), kEps);
  // A division, not a product with the reciprocal: one rounding.
  const at::Tensor scale =
      at::div(at::full({}, float8_max(spec.dtype), wide.options()), wide).to(at::kFloat);
  return spec.rounding == ScaleRounding::kPowerOf2 ? at::exp2(at::floor(at::log2(scale))) : scale;
}

at::Tensor amax_to_e8m0(const at::Tensor& amax, const CastSpec& spec) {
  check_cast_spec(spec);
  TORCH_CHECK(is_e8m0(spec.rounding), "expected an e8m0 rounding; for fp32 see amax_to_scale");
  const at::Tensor wide = amax.to(at::kFloat);
  at::Tensor code;
  if (spec.rounding == ScaleRounding::kE8m0Rceil) {
    const at::Tensor exponent = at::ceil(at::log2(wide.div(float8_max(spec.dtype))));
    code = at::clamp(exponent, -kE8m0Bias, kE8m0Bias).add(kE8m0Bias).to(at::kInt);
  } else {
    const int64_t largest = spec.dtype == at::kFloat8_e4m3fn ? 8 : 15;
    const at::Tensor biased =
        at::bitwise_right_shift(wide.contiguous().view(at::kInt), 23).bitwise_and(0xff);
    code = at::clamp(biased.sub(largest), 0, kE8m0Nan);
  }
  return at::where(at::isnan(wide), kE8m0Nan, code).to(at::kByte).view(at::kFloat8_e8m0fnu);
}

at::Tensor e8m0_to_scale(const at::Tensor& e8m0, const CastSpec& spec) {
  const at::Tensor code = e8m0.view(at::kByte).to(at::kFloat);
  const at::Tensor scale = at::exp2(code.neg().add(kE8m0Bias));
  if (spec.rounding == ScaleRounding::kE8m0Rceil) {
    return at::where(code.eq(0), 1.0, scale);
  }
  return at::where(code.eq(kE8m0Nan), 0.0, at::clamp_max(scale, std::ldexp(1.0, 126)));
}

}  // namespace narrowgauge::float8
