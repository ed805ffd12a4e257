#include "qat/fake_quantize.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/round.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "quantization/affine.h"
#include "quantization/grouped.h"
#include "quantization/quantized_tensor.h"
#include "quantization/scheme.h"
#include "tests/support/numerics.h"

namespace narrowgauge::qat {
namespace {

using quantization::Granularity;
using quantization::Grid;
using quantization::MappingType;
using quantization::QuantizationSpec;
using quantization::ZeroPointDomain;
using testing::expect_bitwise_equal;

std::vector<QuantizationSpec> affine_specs(int64_t group) {
  std::vector<QuantizationSpec> specs;
  for (const auto granularity : {Granularity::kPerGroup, Granularity::kPerRow,
                                 Granularity::kPerToken, Granularity::kPerTensor}) {
    for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
      for (const auto mapping : {MappingType::kSymmetric, MappingType::kSymmetricNoClippingError,
                                 MappingType::kSymmetricFullRange, MappingType::kAsymmetric}) {
        QuantizationSpec spec;
        spec.bits = bits;
        spec.granularity = granularity;
        spec.group_size = granularity == Granularity::kPerGroup ? group : 0;
        spec.mapping = mapping;
        if (mapping == MappingType::kAsymmetric) {
          spec.zero_point_domain = ZeroPointDomain::kInt;
        }
        specs.push_back(spec);
      }
    }
    QuantizationSpec unsigned_codes;
    unsigned_codes.bits = 4;
    unsigned_codes.is_signed = false;
    unsigned_codes.granularity = granularity;
    unsigned_codes.group_size = granularity == Granularity::kPerGroup ? group : 0;
    unsigned_codes.zero_point_domain = ZeroPointDomain::kInt;
    specs.push_back(unsigned_codes);
    unsigned_codes.mapping = MappingType::kAsymmetric;
    specs.push_back(unsigned_codes);
    unsigned_codes.zero_point_domain = ZeroPointDomain::kFloat;
    for (const auto stored : {at::kFloat, at::kBFloat16}) {
      unsigned_codes.scale_dtype = unsigned_codes.zero_point_dtype = stored;
      specs.push_back(unsigned_codes);
    }
  }
  return specs;
}

std::vector<QuantizationSpec> scheme_specs() {
  std::vector<QuantizationSpec> specs;
  for (const std::string& name : quantization::scheme_names()) {
    const quantization::Scheme scheme = quantization::scheme_by_name(name);
    specs.push_back(scheme.weight);
    if (scheme.activation) {
      specs.push_back(*scheme.activation);
    }
  }
  return specs;
}

std::vector<at::Tensor> inputs(int64_t rows, int64_t cols) {
  const at::Tensor normal = at::randn({rows, cols});
  at::Tensor zeros = normal.clone();
  zeros.slice(0, 0, rows, 2).zero_();
  return {normal,
          normal.mul(1e-9),
          normal.abs().add(1.0),
          normal.abs().mul(-3.0).sub(0.5),
          normal.mul(at::randint(0, 3000, {rows, cols}).to(at::kFloat)),
          zeros,
          at::randint(-30, 31, {rows, cols}).to(at::kFloat).mul(0.25)};
}

void expect_same(const FakeQuantized& actual, const FakeQuantized& expected) {
  expect_bitwise_equal(actual.values, expected.values);
  const at::Tensor none = at::zeros({1}, at::kLong);
  const auto bits = [&](const FakeQuantized& result) {
    return result.clipped.defined() && result.clipped.ne(0).any().item<bool>() ? result.clipped
                                                                               : none;
  };
  expect_bitwise_equal(bits(actual), bits(expected));
}

TEST(FakeQuantize, TheKernelHasTheReferencesBits) {
  for (const int64_t cols : {96, 160, 32}) {
    for (const QuantizationSpec& spec : affine_specs(32)) {
      SCOPED_TRACE(quantization::describe(spec));
      for (const at::Tensor& x : inputs(5, cols)) {
        for (const auto from : {at::kFloat, at::kBFloat16}) {
          for (const auto to : {at::kFloat, at::kBFloat16}) {
            const at::Tensor input = x.to(from);
            expect_same(fake_quantize_with_clipped(input, spec, to, true),
                        fake_quantize_with_clipped_reference(input, spec, to, true));
          }
        }
      }
      if (::testing::Test::HasFailure()) {
        return;
      }
    }
  }
}

TEST(FakeQuantize, TheKernelsOfScaledGridsHaveTheReferencesBits) {
  for (const QuantizationSpec& spec : scheme_specs()) {
    SCOPED_TRACE(quantization::describe(spec));
    for (const int64_t cols : {256, 384}) {
      for (const at::Tensor& x : inputs(5, cols)) {
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
          expect_same(fake_quantize_with_clipped(x, spec, dtype, true),
                      fake_quantize_with_clipped_reference(x, spec, dtype, true));
        }
      }
    }
  }
}

TEST(FakeQuantize, TheKernelTakesWidthsThatNoVectorDivides) {
  for (const int64_t cols : {1, 3, 7, 65, 130, 1000}) {
    for (const int64_t group : {int64_t{1}, cols}) {
      for (const QuantizationSpec& spec : affine_specs(group)) {
        SCOPED_TRACE(quantization::describe(spec) + " of " + std::to_string(cols));
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
          const at::Tensor x = at::randn({3, cols}).to(dtype);
          expect_same(fake_quantize_with_clipped(x, spec, dtype, true),
                      fake_quantize_with_clipped_reference(x, spec, dtype, true));
        }
      }
    }
  }
}

TEST(FakeQuantize, AGroupThatIsNotFiniteGivesNaN) {
  for (const QuantizationSpec& spec : affine_specs(32)) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const double bad :
           {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
            -std::numeric_limits<double>::infinity()}) {
        at::Tensor x = at::randn({3, 64}).to(dtype);
        x[1][40] = bad;
        const at::Tensor y = qat::fake_quantize(x, spec);
        const bool per_tensor = spec.granularity == Granularity::kPerTensor;
        EXPECT_TRUE(y[1].slice(0, 32).isnan().all().item<bool>()) << quantization::describe(spec);
        EXPECT_EQ(y[0].isnan().any().item<bool>(), per_tensor) << quantization::describe(spec);
      }
    }
  }
}

// Values so small that their scale has no reciprocal, so large that their range overflows, or not
// finite: training must see what export writes.
TEST(FakeQuantize, ExtremeGroupsHaveTheReferencesValues) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<QuantizationSpec> specs = affine_specs(32);
  for (const QuantizationSpec& spec : scheme_specs()) {
    specs.push_back(spec);
  }
  for (const double magnitude : {1e-42, 1e-39, 1e-37, 1.0, 1e7, 3e37}) {
    at::Tensor x = at::randn({4, 256}).mul(magnitude);
    x.slice(1, 0, 256, 5).zero_();
    for (const double bad : {0.0, kInfinity, -kInfinity, std::nan("")}) {
      x[2][70] = bad;
      for (const QuantizationSpec& spec : specs) {
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
          const at::Tensor actual = fake_quantize_with_clipped(x, spec, dtype, true).values;
          const at::Tensor expected =
              fake_quantize_with_clipped_reference(x, spec, dtype, true).values;
          SCOPED_TRACE(quantization::describe(spec) + ", values of " + std::to_string(magnitude) +
                       " and " + std::to_string(bad));
          // NaN or infinity is all the same.
          const at::Tensor finite = expected.isfinite();
          expect_bitwise_equal(actual.isfinite(), finite);
          expect_bitwise_equal(actual.masked_fill(finite.logical_not(), 0.0),
                               expected.masked_fill(finite.logical_not(), 0.0));
          if (bad == 0.0 && magnitude <= 1.0) {
            ASSERT_TRUE(actual.isfinite().all().item<bool>());
          }
        }
      }
    }
  }
}

// Straight-through in autograd's own terms: rounding is the identity, the clamp is not.
at::Tensor straight_through(const at::Tensor& x, const QuantizationSpec& spec) {
  if (!quantization::can_clip(spec)) {
    return x.add(quantization::fake_quantize(x.detach(), spec).sub(x.detach()));
  }
  const at::Tensor wide = x.to(at::kFloat);
  if (spec.grid == Grid::kGgufQ4_0) {
    const auto q = quantization::quantize(x, spec);
    const at::Tensor groups = quantization::grouped(wide, spec);
    const at::Tensor largest = groups.detach().abs().argmax(2, true);
    const at::Tensor d = groups.detach().gather(2, largest).div(-8.0);
    const at::Tensor code = groups.div(d).add(8.5);
    const at::Tensor whole = code.add(code.detach().floor().sub(code.detach()));
    return at::clamp(whole, 0, 15).sub(8.0).mul(d).reshape(x.sizes());
  }
  const auto qparams = quantization::stored_qparams(
      quantization::choose_qparams_affine(x.detach(), spec), spec, x.scalar_type());
  const at::Tensor scale = qparams.scale.to(at::kFloat).unsqueeze(2);
  at::Tensor code =
      quantization::grouped(wide, spec).mul(qparams.scale.reciprocal().to(at::kFloat).unsqueeze(2));
  const at::Tensor in_dtype = code.detach().to(x.scalar_type()).to(at::kFloat);
  code = code.add(at::round(in_dtype).sub(code.detach()));
  const at::Tensor zero_point = qparams.zero_point.defined()
                                    ? qparams.zero_point.to(at::kFloat).unsqueeze(2)
                                    : at::zeros({1});
  return at::clamp(at::round(code.detach()).sub(code.detach()).add(code).add(zero_point),
                   spec.quant_min(), spec.quant_max())
      .sub(zero_point)
      .mul(scale)
      .reshape(x.sizes());
}

double cosine(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.flatten().to(at::kDouble);
  const at::Tensor y = b.flatten().to(at::kDouble);
  return x.dot(y).item<double>() / (x.norm().item<double>() * y.norm().item<double>());
}

TEST(FakeQuantize, GradientsAreStraightThroughAtAnyScale) {
  std::vector<QuantizationSpec> specs = affine_specs(32);
  for (const QuantizationSpec& spec : scheme_specs()) {
    if (!spec.float8_rows_first) {
      specs.push_back(spec);
    }
  }
  for (const QuantizationSpec& spec : specs) {
    SCOPED_TRACE(quantization::describe(spec));
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const double scale : {1e-4, 1e-2, 1.0, 1e3}) {
        const at::Tensor x = at::randn({8, 256}).to(dtype).requires_grad_(true);
        const at::Tensor grad = at::randn({8, 256}).mul(scale).to(dtype);
        qat::fake_quantize(x, spec).backward(grad);
        const at::Tensor actual = x.grad().clone();
        const at::Tensor twin = x.detach().clone().requires_grad_(true);
        straight_through(twin, spec).backward(grad.to(at::kFloat));
        EXPECT_GE(cosine(actual, twin.grad()), 0.99999);
        // Exactly: what passed is unchanged, what was clipped is zero, and they agree which.
        const at::Tensor passed = twin.grad().ne(0);
        expect_bitwise_equal(actual, at::where(passed, grad, at::zeros({}, grad.options())));
      }
    }
  }
}

TEST(FakeQuantize, NoGradientIsLostOnAFloatingGrid) {
  for (const QuantizationSpec& spec : scheme_specs()) {
    if (quantization::can_clip(spec)) {
      continue;
    }
    const at::Tensor x = at::randn({4, 256}).requires_grad_(true);
    const at::Tensor grad = at::randn({4, 256}).mul(1e-6);
    qat::fake_quantize(x, spec).backward(grad);
    expect_bitwise_equal(x.grad(), grad);
  }
}

TEST(FakeQuantize, TakesEmptyTensorsAndOthersStrides) {
  for (const QuantizationSpec& spec : scheme_specs()) {
    EXPECT_EQ(qat::fake_quantize(at::zeros({0, 256}), spec).sizes(), at::IntArrayRef({0, 256}));
    const at::Tensor x = at::randn({256, 4}).t();
    expect_bitwise_equal(qat::fake_quantize(x, spec), qat::fake_quantize(x.contiguous(), spec));
    const at::Tensor deep = at::randn({2, 3, 256});
    expect_bitwise_equal(qat::fake_quantize(deep, spec), quantization::fake_quantize(deep, spec));
  }
}

TEST(FakeQuantize, EverySchemeComputesWhatItWrites) {
  for (const QuantizationSpec& spec : scheme_specs()) {
    SCOPED_TRACE(quantization::describe(spec));
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const at::Tensor x = at::randn({16, 256}).to(dtype);
      expect_bitwise_equal(qat::fake_quantize(x, spec),
                           quantization::dequantize(quantization::quantize(x, spec), dtype));
    }
  }
}

}  // namespace
}  // namespace narrowgauge::qat
