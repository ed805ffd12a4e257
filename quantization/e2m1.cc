#include "quantization/e2m1.h"

#include <ATen/ops/clamp_max.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/round.h>
#include <ATen/ops/signbit.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

namespace narrowgauge::quantization {
namespace {

constexpr int64_t kSign = 8;

}  // namespace

at::Tensor to_e2m1(const at::Tensor& x) {
  const at::Tensor magnitude = at::clamp_max(at::nan_to_num(x, 0.0).abs(), kE2m1Max);
  // Steps of 0.5 below 2, of 1 below 4, of 2 up to 6; rounding up ends on the next range's code.
  const at::Tensor code = at::where(magnitude.lt(2.0), at::round(magnitude.mul(2.0)),
                                    at::where(magnitude.lt(4.0), at::round(magnitude).add(2.0),
                                              at::round(magnitude.mul(0.5)).add(4.0)));
  const at::Tensor sign = at::signbit(x).logical_and(x.eq(x)).to(at::kByte).mul(kSign);
  return code.to(at::kByte).add(sign);
}

at::Tensor from_e2m1(const at::Tensor& codes) {
  const at::Tensor table = at::tensor({0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F, -0.0F, -0.5F,
                                       -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F},
                                      at::kFloat)
                               .to(codes.device());
  return table.index_select(0, codes.flatten().to(at::kLong)).reshape(codes.sizes());
}

}  // namespace narrowgauge::quantization
