// qat/ and quantization/ on a GPU: the CPU's bits, so that what a GPU trained is what a CPU writes.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "qat/fake_quantize.h"
#include "qat/fake_quantized_linear.h"
#include "quantization/quantized_tensor.h"
#include "quantization/scheme.h"
#include "tests/support/numerics.h"

namespace narrowgauge::qat {
namespace {

using quantization::Granularity;
using quantization::MappingType;
using quantization::QuantizationSpec;
using testing::expect_bitwise_equal;

std::vector<QuantizationSpec> specs(int64_t group) {
  std::vector<QuantizationSpec> all;
  for (const std::string& name : quantization::scheme_names()) {
    const auto scheme = quantization::scheme_by_name(name);
    all.push_back(scheme.weight);
    if (scheme.activation) {
      all.push_back(*scheme.activation);
    }
  }
  for (const int bits : {2, 3, 8}) {
    for (const auto mapping : {MappingType::kSymmetric, MappingType::kSymmetricNoClippingError,
                               MappingType::kSymmetricFullRange, MappingType::kAsymmetric}) {
      for (const auto granularity :
           {Granularity::kPerGroup, Granularity::kPerRow, Granularity::kPerTensor}) {
        QuantizationSpec spec;
        spec.bits = bits;
        spec.mapping = mapping;
        spec.granularity = granularity;
        spec.group_size = granularity == Granularity::kPerGroup ? group : 0;
        if (mapping == MappingType::kAsymmetric) {
          spec.zero_point_domain = quantization::ZeroPointDomain::kInt;
        }
        all.push_back(spec);
      }
    }
  }
  return all;
}

TEST(QATGpu, ValuesAndGradientsAreTheCPUs) {
  for (const int64_t cols : {256, 4096}) {
    for (const QuantizationSpec& spec : specs(64)) {
      SCOPED_TRACE(quantization::describe(spec));
      for (const auto dtype : {at::kFloat, at::kBFloat16}) {
        const at::Tensor x = at::randn({33, cols}).mul(at::randn({33, 1}).exp()).to(dtype);
        const at::Tensor grad = at::randn({33, cols}).to(dtype);
        const at::Tensor on_cpu = x.clone().requires_grad_(true);
        const at::Tensor on_gpu = x.cuda().requires_grad_(true);
        const at::Tensor expected = qat::fake_quantize(on_cpu, spec);
        const at::Tensor actual = qat::fake_quantize(on_gpu, spec);
        expect_bitwise_equal(actual.detach().cpu(), expected.detach());
        expected.backward(grad);
        actual.backward(grad.cuda());
        expect_bitwise_equal(on_gpu.grad().cpu(), on_cpu.grad());
      }
    }
  }
}

TEST(QATGpu, MasterWeightsAreRoundedFirst) {
  for (const QuantizationSpec& spec : specs(32)) {
    SCOPED_TRACE(quantization::describe(spec));
    const at::Tensor x = at::randn({16, 512});
    expect_bitwise_equal(
        fake_quantize_with_clipped(x.cuda(), spec, at::kBFloat16, true).values.cpu(),
        fake_quantize_with_clipped(x, spec, at::kBFloat16, true).values);
  }
}

TEST(QATGpu, OddGroupsAndWhatIsNotFinite) {
  for (const int64_t cols : {30, 90, 1030}) {
    for (const QuantizationSpec& spec : specs(10)) {
      if (spec.grid != quantization::Grid::kAffine ||
          cols % std::max<int64_t>(spec.group_size, 1)) {
        continue;
      }
      SCOPED_TRACE(quantization::describe(spec));
      at::Tensor x = at::randn({5, cols});
      const auto expected = fake_quantize_with_clipped(x, spec, at::kFloat, true);
      const auto actual = fake_quantize_with_clipped(x.cuda(), spec, at::kFloat, true);
      expect_bitwise_equal(actual.values.cpu(), expected.values);
      if (expected.clipped.defined()) {
        expect_bitwise_equal(actual.clipped.cpu(), expected.clipped);
      }
      x[2][3] = std::numeric_limits<float>::infinity();
      EXPECT_FALSE(qat::fake_quantize(x.cuda(), spec)[2].isfinite().all().item<bool>());
    }
  }
}

TEST(QATGpu, TheLinearTrains) {
  for (const std::string& name : quantization::scheme_names()) {
    SCOPED_TRACE(name);
    nn::Linear linear({256, 64, true}, at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA));
    {
      const at::NoGradGuard no_grad;
      linear.weight.copy_(at::randn({64, 256}).mul(0.05));
      linear.bias.zero_();
    }
    FakeQuantizedLinear prepared(linear, quantization::scheme_by_name(name));
    const at::Tensor x = at::randn({40, 256}).to(at::kBFloat16).cuda().requires_grad_(true);
    prepared(x).sum().backward();
    EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
    EXPECT_GT(linear.weight.grad().abs().sum().item<double>(), 0.0);
    EXPECT_EQ(linear.bias.grad()[0].item<double>(), 40.0);
  }
}

}  // namespace
}  // namespace narrowgauge::qat
