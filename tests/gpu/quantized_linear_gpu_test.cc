// Quantized linears on a GPU: the values and products of the CPU's.

#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "quantization/quantized_linear.h"
#include "quantization/scheme.h"
#include "tests/support/numerics.h"

namespace narrowgauge::quantization {
namespace {

using testing::expect_bitwise_equal;
using testing::expect_close;

QuantizedTensor on_gpu(const QuantizedTensor& q) {
  QuantizedTensor result = q;
  result.codes = q.codes.cuda();
  result.scale = q.scale.cuda();
  if (q.zero_point) {
    result.zero_point = q.zero_point->cuda();
  }
  if (q.outer_scale) {
    result.outer_scale = q.outer_scale->cuda();
  }
  return result;
}

TEST(QuantizedLinearOnGpu, ComputesWhatTheCpuComputes) {
  for (const std::string& name : scheme_names()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(name + (dtype == at::kFloat ? " fp32" : " bf16"));
      const Scheme scheme = scheme_by_name(name);
      const QuantizedTensor q = quantize(at::randn({96, 256}).mul(0.05).to(dtype), scheme.weight);
      expect_bitwise_equal(dequantize(on_gpu(q), dtype).cpu(), dequantize(q, dtype));
      const at::Tensor bias = at::randn({96}).to(dtype);
      QuantizedLinear linear({256, 96, true}, {on_gpu(q)}, scheme.activation, bias.cuda());
      EXPECT_FALSE(linear.is_packed());
      const at::Tensor x = at::randn({7, 256}).to(dtype);
      const at::Tensor input = scheme.activation ? fake_quantize(x, *scheme.activation) : x;
      const at::Tensor weight = dequantize(q, dtype).to(at::kDouble);
      const at::Tensor expected = input.to(at::kDouble).matmul(weight.t()).add(bias);
      const at::Tensor magnitude =
          input.to(at::kDouble).abs().matmul(weight.abs().t()).add(bias.abs());
      expect_close(linear(x.cuda()).cpu(), expected.to(dtype), 2 * testing::tolerance(dtype, 256),
                   magnitude);
    }
  }
}

}  // namespace
}  // namespace narrowgauge::quantization
