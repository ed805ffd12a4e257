#include "float8/formats.h"

#include <ATen/ops/clamp.h>

namespace narrowgauge::float8 {

bool is_float8(at::ScalarType dtype) {
  return dtype == at::kFloat8_e4m3fn || dtype == at::kFloat8_e5m2;
}

double float8_max(at::ScalarType dtype) {
  TORCH_CHECK(is_float8(dtype), "expected float8_e4m3fn or float8_e5m2, got ", dtype);
  return dtype == at::kFloat8_e4m3fn ? 448.0 : 57344.0;
}

at::Tensor to_fp8_saturated(const at::Tensor& x, at::ScalarType dtype) {
  const double max = float8_max(dtype);
  return at::clamp(x, -max, max).to(dtype);
}

}  // namespace narrowgauge::float8
