#include "float8/cast_cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/reciprocal.h>

#include "cuda/launch_scope.h"
#include "float8/cuda_dispatch.h"
#include "float8/formats.h"

namespace narrowgauge::float8 {
namespace {

kernels::Groups groups_of(const CastSpec& spec, int64_t dim, at::IntArrayRef sizes) {
  const GroupShape group = group_shape(spec.granularity, dim, sizes);
  return {group.rows, group.cols, (sizes[1] + group.cols - 1) / group.cols};
}

struct Scales {
  at::Tensor scale;
  at::Tensor inverse_scale;
};

Scales scales_of(const at::Tensor& amax, const CastSpec& spec) {
  const cuda::LaunchScope scope(amax);
  const Scales scales{at::empty_like(amax), at::empty_like(amax)};
  kernels::amax_to_scale(
      amax.const_data_ptr<float>(), float8_max(spec.dtype),
      spec.rounding == ScaleRounding::kPowerOf2, scales.scale.mutable_data_ptr<float>(),
      scales.inverse_scale.mutable_data_ptr<float>(), amax.numel(), scope.stream());
  return scales;
}

// Not cast yet: memory for the codes, in the layout that a product over dim reads.
Float8TrainingTensor make_output(const at::Tensor& x, const at::Tensor& inverse_scale,
                                 const CastSpec& spec, bool by_column) {
  const auto options = x.options().dtype(spec.dtype).requires_grad(false);
  const at::Tensor data = by_column ? at::empty({x.size(1), x.size(0)}, options).t()
                                    : at::empty({x.size(0), x.size(1)}, options);
  return {data, inverse_scale, spec.granularity, by_column ? 0 : 1, x.scalar_type()};
}

kernels::CastOutput output_of(const Float8TrainingTensor& cast, const at::Tensor& scale,
                              const CastSpec& spec, at::IntArrayRef sizes) {
  return {static_cast<uint8_t*>(cast.data.mutable_data_ptr()), scale.const_data_ptr<float>(),
          groups_of(spec, cast.dim, sizes)};
}

kernels::Format kernel_format_of(at::ScalarType dtype) {
  return dtype == at::kFloat8_e4m3fn ? kernels::Format::kE4m3 : kernels::Format::kE5m2;
}

// amax: undefined, or fp32 [] to receive that of all of x.
void run_cast(const at::Tensor& x, at::ScalarType dtype, const kernels::CastOutput& by_row,
              const kernels::CastOutput& by_column, const at::Tensor& amax = {}) {
  const cuda::LaunchScope scope(x);
  float* const of_all = amax.defined() ? amax.mutable_data_ptr<float>() : nullptr;
  with_cuda_elements(x, [&](const auto* data) {
    kernels::cast(data, x.size(0), x.size(1), kernel_format_of(dtype), by_row, by_column, of_all,
                  scope.stream());
  });
}

Float8TrainingTensor cast_with(const at::Tensor& x, const Scales& scales, const CastSpec& spec,
                               int64_t dim) {
  const bool by_column = dim == 0 || dim == -2;
  const at::Tensor packed = x.detach().contiguous();
  const Float8TrainingTensor cast = make_output(x, scales.inverse_scale, spec, by_column);
  const kernels::CastOutput output = output_of(cast, scales.scale, spec, x.sizes());
  run_cast(packed, spec.dtype, by_column ? kernels::CastOutput{} : output,
           by_column ? output : kernels::CastOutput{});
  return cast;
}

bool groups_ignore_dim(const CastSpec& spec) {
  return spec.granularity == ScalingGranularity::kTensorwise ||
         spec.granularity == ScalingGranularity::kBlockwise128x128;
}

// Of a matrix whose operands are scaled by row and by column.
std::pair<Scales, Scales> row_and_column_scales(const at::Tensor& packed, const CastSpec& spec_dim1,
                                                const CastSpec& spec_dim0) {
  const cuda::LaunchScope scope(packed);
  const int64_t rows = packed.size(0);
  const int64_t cols = packed.size(1);
  const at::Tensor amax = at::empty({rows + cols}, packed.options().dtype(at::kFloat));
  with_cuda_elements(packed, [&](const auto* data) {
    kernels::row_and_column_amax(data, rows, cols, amax.mutable_data_ptr<float>(), scope.stream());
  });
  const auto of_rows = [&](const at::Tensor& all) { return all.narrow(0, 0, rows).unsqueeze(1); };
  const auto of_columns = [&](const at::Tensor& all) {
    return all.narrow(0, rows, cols).unsqueeze(0);
  };
  if (spec_dim1 == spec_dim0) {
    const Scales all = scales_of(amax, spec_dim1);
    return {{of_rows(all.scale), of_rows(all.inverse_scale)},
            {of_columns(all.scale), of_columns(all.inverse_scale)}};
  }
  return {scales_of(of_rows(amax), spec_dim1), scales_of(of_columns(amax), spec_dim0)};
}

// Scales for dim 1 and for dim 0, from as few reads of x as they need.
std::pair<Scales, Scales> both_scales(const at::Tensor& packed, const CastSpec& spec_dim1,
                                      const CastSpec& spec_dim0) {
  const bool by_axis = spec_dim1.granularity == ScalingGranularity::kAxiswise &&
                       spec_dim0.granularity == ScalingGranularity::kAxiswise;
  if (by_axis) {
    return row_and_column_scales(packed, spec_dim1, spec_dim0);
  }
  const at::Tensor amax1 = tensor_to_amax(packed, spec_dim1.granularity, 1);
  const Scales scales1 = scales_of(amax1, spec_dim1);
  if (spec_dim1 == spec_dim0 && groups_ignore_dim(spec_dim1)) {
    return {scales1, scales1};
  }
  const bool same_groups =
      spec_dim1.granularity == spec_dim0.granularity && groups_ignore_dim(spec_dim0);
  return {scales1, scales_of(same_groups ? amax1 : tensor_to_amax(packed, spec_dim0.granularity, 0),
                             spec_dim0)};
}

}  // namespace

bool has_cuda_cast(const at::Tensor& x, const CastSpec& spec) {
  return spec.granularity != ScalingGranularity::kBlockwise1x32 && has_cuda_kernel(x);
}

Float8TrainingTensor hp_tensor_and_scale_to_float8_cuda(const at::Tensor& x,
                                                        const at::Tensor& scale,
                                                        const CastSpec& spec, int64_t dim) {
  TORCH_CHECK(scale.scalar_type() == at::kFloat && scale.device() == x.device(),
              "expected fp32 scales on ", x.device(), ", got ", scale.toString());
  const at::Tensor packed = scale.contiguous();
  return cast_with(x, {packed, at::reciprocal(packed)}, spec, dim);
}

Float8TrainingTensor hp_tensor_to_float8_dynamic_cuda(const at::Tensor& x, const CastSpec& spec,
                                                      int64_t dim) {
  return cast_with(x, scales_of(tensor_to_amax(x, spec.granularity, dim), spec), spec, dim);
}

KnownScaleCasts hp_tensor_and_scale_to_float8_both_dims_cuda(const at::Tensor& x,
                                                             const at::Tensor& scale,
                                                             const CastSpec& spec) {
  const at::Tensor packed = x.detach().contiguous();
  const at::Tensor inverse_scale = at::reciprocal(scale);
  const at::Tensor amax = at::empty({}, x.options().dtype(at::kFloat).requires_grad(false));
  const Float8TrainingTensor dim1 = make_output(x, inverse_scale, spec, false);
  const Float8TrainingTensor dim0 = make_output(x, inverse_scale, spec, true);
  run_cast(packed, spec.dtype, output_of(dim1, scale, spec, x.sizes()),
           output_of(dim0, scale, spec, x.sizes()), amax);
  return {dim1, dim0, amax};
}

std::pair<Float8TrainingTensor, Float8TrainingTensor> hp_tensor_to_float8_both_dims_cuda(
    const at::Tensor& x, const CastSpec& spec_dim1, const CastSpec& spec_dim0) {
  const at::Tensor packed = x.detach().contiguous();
  const auto [scales1, scales0] = both_scales(packed, spec_dim1, spec_dim0);
  if (spec_dim1.dtype != spec_dim0.dtype) {
    return {cast_with(packed, scales1, spec_dim1, 1), cast_with(packed, scales0, spec_dim0, 0)};
  }
  const Float8TrainingTensor dim1 = make_output(x, scales1.inverse_scale, spec_dim1, false);
  const Float8TrainingTensor dim0 = make_output(x, scales0.inverse_scale, spec_dim0, true);
  run_cast(packed, spec_dim1.dtype, output_of(dim1, scales1.scale, spec_dim1, x.sizes()),
           output_of(dim0, scales0.scale, spec_dim0, x.sizes()));
  return {dim1, dim0};
}

std::pair<int64_t, int64_t> count_losses_cuda(const at::Tensor& x,
                                              const Float8TrainingTensor& cast) {
  const cuda::LaunchScope scope(x);
  const at::Tensor packed = x.detach().contiguous();
  const at::Tensor counts = at::empty({2}, x.options().dtype(at::kLong).requires_grad(false));
  with_cuda_elements(packed, [&](const auto* data) {
    kernels::count_losses(data, static_cast<const uint8_t*>(cast.data.const_data_ptr()), x.numel(),
                          kernel_format_of(cast.data.scalar_type()),
                          counts.mutable_data_ptr<int64_t>(), scope.stream());
  });
  const at::Tensor on_host = counts.cpu();
  return {on_host.const_data_ptr<int64_t>()[0], on_host.const_data_ptr<int64_t>()[1]};
}

at::Tensor row_major_codes_cuda(const at::Tensor& codes) {
  if (codes.is_contiguous() || codes.numel() == 0 || !codes.t().is_contiguous()) {
    return codes.contiguous();
  }
  const cuda::LaunchScope scope(codes);
  const at::Tensor result = at::empty(codes.sizes(), codes.options());
  kernels::transpose_codes(static_cast<const uint8_t*>(codes.const_data_ptr()), codes.size(1),
                           codes.size(0), static_cast<uint8_t*>(result.mutable_data_ptr()),
                           scope.stream());
  return result;
}

}  // namespace narrowgauge::float8
