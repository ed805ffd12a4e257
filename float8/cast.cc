#include "float8/cast.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/reciprocal.h>

#include <utility>
#include <vector>

#include "float8/cast_cuda.h"
#include "float8/cuda_dispatch.h"
#include "float8/formats.h"
#include "float8/kernels/cast.h"
#include "float8/kernels/scale.h"
#include "float8/row_strips.h"
#include "nn/kernel_dispatch.h"

namespace narrowgauge::float8 {
namespace {

using nn::const_pointer;
using nn::mutable_pointer;
using nn::with_element_type;

bool is_mx(const CastSpec& spec) { return spec.granularity == ScalingGranularity::kBlockwise1x32; }

bool same_for_both_dims(ScalingGranularity granularity) {
  return granularity == ScalingGranularity::kTensorwise ||
         granularity == ScalingGranularity::kBlockwise128x128;
}

int64_t normalized_dim(int64_t dim) { return dim < 0 ? dim + 2 : dim; }

at::Tensor empty_codes(const at::Tensor& x, at::ScalarType dtype) {
  return at::empty(x.sizes(), x.options().dtype(dtype));
}

Float8TrainingTensor cast_reference(const at::Tensor& x, const at::Tensor& scale,
                                    const at::Tensor& inverse_scale, const CastSpec& spec,
                                    int64_t dim) {
  const at::Tensor scaled =
      x.to(at::kFloat).mul(expand_scales(scale, spec.granularity, dim, x.sizes()));
  return {to_fp8_saturated(scaled, spec.dtype), inverse_scale, spec.granularity,
          normalized_dim(dim), x.scalar_type()};
}

Float8TrainingTensor dynamic_reference(const at::Tensor& x, const CastSpec& spec, int64_t dim) {
  const at::Tensor amax = tensor_to_amax_reference(x, spec.granularity, dim);
  if (is_mx(spec)) {
    const at::Tensor e8m0 = amax_to_e8m0(amax, spec);
    return cast_reference(x, e8m0_to_scale(e8m0, spec), e8m0, spec, dim);
  }
  return hp_tensor_and_scale_to_float8_reference(x, amax_to_scale(amax, spec), spec, dim);
}

at::Tensor contiguous_scale(const at::Tensor& scale, const at::Tensor& x, const CastSpec& spec,
                            int64_t dim) {
  const ScaleGrid grid(spec.granularity, dim, x.sizes());
  TORCH_CHECK(scale.scalar_type() == at::kFloat && scale.numel() == grid.rows * grid.cols,
              "expected ", grid.rows * grid.cols, " fp32 scales for a matrix of sizes ", x.sizes(),
              ", got ", scale.scalar_type(), " of sizes ", scale.sizes());
  return scale.contiguous();
}

// One cast of x with scales of its own values, strip by strip.
class DynamicCast {
 public:
  DynamicCast(const at::Tensor& x, const CastSpec& spec, int64_t dim)
      : spec_(spec),
        dim_(normalized_dim(dim)),
        format_(kernel_format(spec.dtype)),
        grid_(spec.granularity, dim, x.sizes()),
        codes_(empty_codes(x, spec.dtype)),
        scale_(at::empty({grid_.rows, grid_.cols}, x.options().dtype(at::kFloat))),
        inverse_scale_(
            at::empty({grid_.rows, grid_.cols},
                      x.options().dtype(is_mx(spec) ? at::kFloat8_e8m0fnu : at::kFloat))) {
    if (!one_pass()) {
      partial_amax_ = empty_strip_amax(x, grid_);
    }
  }

  // Whether a strip's scales are known once the strip is read.
  bool one_pass() const { return grid_.fits_strips(); }

  // First read of a strip: its codes, or its part in amax.
  template <typename T>
  void read_strip(const T* x, int64_t index, int64_t row, int64_t num_rows, int64_t cols) {
    if (!one_pass()) {
      kernels::amax(x, num_rows, cols, grid_.groups(),
                    strip_amax(partial_amax_, grid_, index, row));
      return;
    }
    const int64_t first = grid_.offset(row);
    const int64_t count = (num_rows + grid_.group.rows - 1) / grid_.group.rows * grid_.cols;
    std::vector<float> amax(static_cast<size_t>(count), 0.0F);
    kernels::amax(x, num_rows, cols, grid_.groups(), amax.data());
    to_scales(amax.data(), first, count);
    cast_strip(x, row, num_rows, cols);
  }

  // Between the reads.
  void end_first_pass() {
    if (!one_pass()) {
      const at::Tensor amax = merged_amax(partial_amax_, grid_);
      to_scales(amax.const_data_ptr<float>(), 0, grid_.cols);
    }
  }

  template <typename T>
  void cast_strip(const T* x, int64_t row, int64_t num_rows, int64_t cols) {
    kernels::cast(x, num_rows, cols, grid_.groups(),
                  scale_.const_data_ptr<float>() + grid_.offset(row), format_,
                  mutable_pointer<uint8_t>(codes_) + row * cols, nullptr);
  }

  Float8TrainingTensor result(at::ScalarType orig_dtype) const {
    const bool tensorwise = spec_.granularity == ScalingGranularity::kTensorwise;
    return {codes_, tensorwise ? inverse_scale_.reshape({}) : inverse_scale_, spec_.granularity,
            dim_, orig_dtype};
  }

 private:
  void to_scales(const float* amax, int64_t first, int64_t count) {
    float* scale = scale_.mutable_data_ptr<float>() + first;
    if (is_mx(spec_)) {
      kernels::amax_to_e8m0(amax, count, format_, spec_.rounding == ScaleRounding::kE8m0Rceil,
                            mutable_pointer<uint8_t>(inverse_scale_) + first, scale);
    } else {
      kernels::amax_to_scale(amax, count, format_, spec_.rounding == ScaleRounding::kPowerOf2,
                             scale, inverse_scale_.mutable_data_ptr<float>() + first);
    }
  }

  CastSpec spec_;
  int64_t dim_;
  kernels::Float8Format format_;
  ScaleGrid grid_;
  at::Tensor codes_;
  at::Tensor scale_;
  at::Tensor inverse_scale_;
  at::Tensor partial_amax_;  // undefined for one pass
};

// x is read once, and once more for those casts whose scales depend on all of it.
void run_casts(const at::Tensor& x, std::vector<DynamicCast>& casts) {
  const int64_t rows = x.size(0);
  const int64_t cols = x.size(1);
  bool second_pass = false;
  with_element_type(x, [&](auto element) {
    const auto* data = const_pointer<decltype(element)>(x);
    for_each_strip(rows, cols, [&](int64_t index, int64_t row, int64_t num_rows) {
      for (DynamicCast& cast : casts) {
        cast.read_strip(data + row * cols, index, row, num_rows, cols);
      }
    });
    for (DynamicCast& cast : casts) {
      cast.end_first_pass();
      second_pass = second_pass || !cast.one_pass();
    }
    if (!second_pass) {
      return;
    }
    for_each_strip(rows, cols, [&](int64_t, int64_t row, int64_t num_rows) {
      for (DynamicCast& cast : casts) {
        if (!cast.one_pass()) {
          cast.cast_strip(data + row * cols, row, num_rows, cols);
        }
      }
    });
  });
}

// amax: undefined, or of empty_strip_amax.
Float8TrainingTensor cast_known(const at::Tensor& x, const at::Tensor& scale, const CastSpec& spec,
                                int64_t dim, const at::Tensor& amax) {
  const ScaleGrid grid(spec.granularity, dim, x.sizes());
  const at::Tensor values = readable_by_kernels(x);
  const at::Tensor multiplier = contiguous_scale(scale, x, spec, dim);
  const at::Tensor codes = empty_codes(values, spec.dtype);
  const int64_t cols = x.size(1);
  with_element_type(values, [&](auto element) {
    const auto* data = const_pointer<decltype(element)>(values);
    for_each_strip(x.size(0), cols, [&](int64_t index, int64_t row, int64_t num_rows) {
      kernels::cast(data + row * cols, num_rows, cols, grid.groups(),
                    multiplier.const_data_ptr<float>() + grid.offset(row),
                    kernel_format(spec.dtype), mutable_pointer<uint8_t>(codes) + row * cols,
                    amax.defined() ? strip_amax(amax, grid, index, row) : nullptr);
    });
  });
  return {codes, at::reciprocal(multiplier).reshape(scale.sizes()), spec.granularity,
          normalized_dim(dim), x.scalar_type()};
}

void check_known(const CastSpec& spec) {
  check_cast_spec(spec);
  TORCH_CHECK(!is_mx(spec), "expected fp32 scales, got an e8m0 spec; cast dynamically");
}

}  // namespace

Float8TrainingTensor hp_tensor_and_scale_to_float8_reference(const at::Tensor& x,
                                                             const at::Tensor& scale,
                                                             const CastSpec& spec, int64_t dim) {
  check_known(spec);
  return cast_reference(x.detach(), scale, at::reciprocal(scale), spec, dim);
}

Float8TrainingTensor hp_tensor_and_scale_to_float8(const at::Tensor& x, const at::Tensor& scale,
                                                   const CastSpec& spec, int64_t dim) {
  check_known(spec);
  if (has_cuda_cast(x, spec)) {
    return hp_tensor_and_scale_to_float8_cuda(x, scale, spec, dim);
  }
  return runs_cpu_kernel(x) ? cast_known(x.detach(), scale, spec, dim, at::Tensor())
                            : hp_tensor_and_scale_to_float8_reference(x, scale, spec, dim);
}

CastWithAmax hp_tensor_and_scale_to_float8_with_amax(const at::Tensor& x, const at::Tensor& scale,
                                                     const CastSpec& spec, int64_t dim) {
  check_known(spec);
  if (!runs_cpu_kernel(x)) {
    return {hp_tensor_and_scale_to_float8(x, scale, spec, dim),
            tensor_to_amax(x, spec.granularity, dim)};
  }
  const ScaleGrid grid(spec.granularity, dim, x.sizes());
  const at::Tensor amax = empty_strip_amax(x, grid);
  const Float8TrainingTensor tensor = cast_known(x.detach(), scale, spec, dim, amax);
  return {tensor, merged_amax(amax, grid).reshape(scale.sizes())};
}

BothDimsWithAmax hp_tensor_and_scale_to_float8_both_dims(const at::Tensor& x,
                                                         const at::Tensor& scale,
                                                         const CastSpec& spec) {
  check_known(spec);
  TORCH_CHECK(spec.granularity == ScalingGranularity::kTensorwise && scale.dim() == 0,
              "expected one scale for the whole matrix, got one of sizes ", scale.sizes());
  if (has_cuda_cast(x, spec)) {
    KnownScaleCasts casts = hp_tensor_and_scale_to_float8_both_dims_cuda(x, scale, spec);
    return {std::move(casts.dim1), std::move(casts.dim0), std::move(casts.amax)};
  }
  CastWithAmax cast = hp_tensor_and_scale_to_float8_with_amax(x, scale, spec, 1);
  Float8TrainingTensor dim0 = cast.tensor;
  dim0.dim = 0;
  return {std::move(cast.tensor), std::move(dim0), std::move(cast.amax)};
}

Float8TrainingTensor hp_tensor_to_float8_dynamic(const at::Tensor& x, const CastSpec& spec,
                                                 int64_t dim) {
  check_cast_spec(spec);
  if (has_cuda_cast(x, spec)) {
    return hp_tensor_to_float8_dynamic_cuda(x, spec, dim);
  }
  if (!runs_cpu_kernel(x)) {
    return dynamic_reference(x.detach(), spec, dim);
  }
  const at::Tensor values = readable_by_kernels(x);
  std::vector<DynamicCast> casts;
  casts.emplace_back(values, spec, dim);
  run_casts(values, casts);
  return casts[0].result(x.scalar_type());
}

BothDims hp_tensor_to_float8_both_dims(const at::Tensor& x, const CastSpec& spec_dim1,
                                       const CastSpec& spec_dim0) {
  check_cast_spec(spec_dim1);
  check_cast_spec(spec_dim0);
  if (has_cuda_cast(x, spec_dim1) && has_cuda_cast(x, spec_dim0)) {
    auto [dim1, dim0] = hp_tensor_to_float8_both_dims_cuda(x, spec_dim1, spec_dim0);
    return {std::move(dim1), std::move(dim0)};
  }
  if (spec_dim1 == spec_dim0 && same_for_both_dims(spec_dim1.granularity)) {
    const Float8TrainingTensor dim1 = hp_tensor_to_float8_dynamic(x, spec_dim1, 1);
    Float8TrainingTensor dim0 = dim1;
    dim0.dim = 0;
    return {dim1, dim0};
  }
  if (!runs_cpu_kernel(x)) {
    return {dynamic_reference(x.detach(), spec_dim1, 1),
            dynamic_reference(x.detach(), spec_dim0, 0)};
  }
  const at::Tensor values = readable_by_kernels(x);
  std::vector<DynamicCast> casts;
  casts.emplace_back(values, spec_dim1, 1);
  casts.emplace_back(values, spec_dim0, 0);
  run_casts(values, casts);
  return {casts[0].result(x.scalar_type()), casts[1].result(x.scalar_type())};
}

Float8TrainingTensor readable_over_dim0(const Float8TrainingTensor& cast) {
  TORCH_CHECK(same_for_both_dims(cast.granularity),
              "expected a cast whose scales suit both dimensions; cast for dim 0 by itself");
  Float8TrainingTensor result = cast;
  result.dim = 0;
  if (cast.data.is_cuda() && !cast.data.t().is_contiguous()) {
    result.data = row_major_codes_cuda(cast.data.t()).t();
  }
  return result;
}

CastStatistics cast_statistics_reference(const at::Tensor& x, const Float8TrainingTensor& cast) {
  const auto count = static_cast<double>(std::max<int64_t>(x.numel(), 1));
  const at::Tensor codes = cast.data.to(at::kFloat);
  const double max = float8_max(cast.data.scalar_type());
  const at::Tensor underflowed = at::logical_and(codes.eq(0), x.ne(0));
  return {static_cast<double>(codes.abs().ge(max).sum().item<int64_t>()) / count,
          static_cast<double>(underflowed.sum().item<int64_t>()) / count};
}

CastStatistics cast_statistics(const at::Tensor& x, const Float8TrainingTensor& cast) {
  if (has_cuda_kernel(x) && cast.data.is_contiguous()) {
    const auto [saturated, underflowed] = count_losses_cuda(x, cast);
    const auto count = static_cast<double>(x.numel());
    return {static_cast<double>(saturated) / count, static_cast<double>(underflowed) / count};
  }
  if (!runs_cpu_kernel(x) || !cast.data.is_contiguous()) {
    return cast_statistics_reference(x, cast);
  }
  const at::Tensor values = readable_by_kernels(x);
  const int64_t cols = x.size(1);
  std::vector<kernels::CastLosses> of_strips(static_cast<size_t>(num_strips(x.size(0))));
  with_element_type(values, [&](auto element) {
    for_each_strip(x.size(0), cols, [&](int64_t index, int64_t row, int64_t num_rows) {
      kernels::count_losses(const_pointer<decltype(element)>(values) + row * cols,
                            const_pointer<uint8_t>(cast.data) + row * cols, num_rows * cols,
                            kernel_format(cast.data.scalar_type()),
                            &of_strips[static_cast<size_t>(index)]);
    });
  });
  kernels::CastLosses all;
  for (const kernels::CastLosses& losses : of_strips) {
    all.saturated += losses.saturated;
    all.underflowed += losses.underflowed;
  }
  const auto count = static_cast<double>(x.numel());
  return {static_cast<double>(all.saturated) / count, static_cast<double>(all.underflowed) / count};
}

}  // namespace narrowgauge::float8
