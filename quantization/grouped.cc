#include "quantization/grouped.h"

namespace narrowgauge::quantization {

at::Tensor grouped(const at::Tensor& x, const QuantizationSpec& spec) {
  TORCH_CHECK(x.dim() >= 1, "expected at least one dimension, got a scalar");
  const int64_t cols = x.size(-1);
  const int64_t group = group_columns(spec, cols);
  if (spec.granularity == Granularity::kPerTensor) {
    return x.reshape({1, 1, x.numel()});
  }
  int64_t rows = 1;
  for (int64_t dim = 0; dim + 1 < x.dim(); ++dim) {
    rows *= x.size(dim);
  }
  return x.reshape({rows, group == 0 ? 0 : cols / group, group});
}

}  // namespace narrowgauge::quantization
