#include "float8/float8_training_tensor.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>

#include "float8/row_strips.h"
#include "nn/kernel_dispatch.h"

namespace narrowgauge::float8 {

Float8TrainingTensor transpose(const Float8TrainingTensor& x) {
  Float8TrainingTensor result = x;
  result.data = x.data.t();
  result.inverse_scale = x.inverse_scale.dim() == 2 ? x.inverse_scale.t() : x.inverse_scale;
  result.dim = 1 - x.dim;
  return result;
}

at::Tensor dequantize_reference(const Float8TrainingTensor& x, at::ScalarType dtype) {
  const at::Tensor scale =
      expand_scales(x.inverse_scale.to(at::kFloat), x.granularity, x.dim, x.data.sizes());
  return x.data.to(at::kFloat).mul(scale).to(dtype).contiguous();
}

at::Tensor dequantize(const Float8TrainingTensor& x, at::ScalarType dtype) {
  if (!x.data.is_contiguous() && x.data.t().is_contiguous()) {
    return dequantize(transpose(x), dtype).t().contiguous();
  }
  const bool writable = dtype == at::kFloat || dtype == at::kBFloat16;
  if (!x.data.is_cpu() || !x.data.is_contiguous() || x.data.numel() == 0 || !writable) {
    return dequantize_reference(x, dtype);
  }
  const ScaleGrid grid(x.granularity, x.dim, x.data.sizes());
  const at::Tensor inverse_scale = x.inverse_scale.to(at::kFloat).contiguous();
  const at::Tensor result = at::empty(x.data.sizes(), x.data.options().dtype(dtype));
  nn::with_element_type(result, [&](auto element) {
    auto* to = nn::mutable_pointer<decltype(element)>(result);
    for_each_strip(x.rows(), x.cols(), [&](int64_t, int64_t row, int64_t num_rows) {
      kernels::decode(nn::const_pointer<uint8_t>(x.data) + row * x.cols(), num_rows, x.cols(),
                      grid.groups(), inverse_scale.const_data_ptr<float>() + grid.offset(row),
                      kernel_format(x.data.scalar_type()), to + row * x.cols());
    });
  });
  return result;
}

}  // namespace narrowgauge::float8
