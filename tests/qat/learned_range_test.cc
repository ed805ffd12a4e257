// Learned ranges: gradients against autograd's of the straight-through definition in fp64, values
// against quantization/, and prepare against convert.

#include "qat/learned_range.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/round.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/huggingface_names.h"
#include "nn/linear.h"
#include "qat/convert.h"
#include "qat/fake_quantize.h"
#include "qat/learned_range_linear.h"
#include "qat/prepare.h"
#include "quantization/grouped.h"
#include "quantization/quantized_tensor.h"
#include "tests/support/numerics.h"

namespace narrowgauge::qat {
namespace {

using quantization::parse_scheme;
using quantization::QuantizationSpec;
using quantization::Scheme;
using testing::expect_bitwise_equal;

const std::vector<std::string> kSchemes = {
    "8da4w", "int4-weight-only group_size=32", "intx-weight-only bits=2 group_size=16",
    "intx-weight-only bits=3 mapping=symmetric_no_clipping_err", "int8-dynamic-act-int8-weight"};

// Some of each group's members are far outside of the range.
LearnedRange some_range(const at::Tensor& weight, const QuantizationSpec& spec) {
  LearnedRange range = initial_range(weight, spec);
  range.scale = range.scale.mul(0.6);
  return range;
}

double middle(const QuantizationSpec& spec) {
  return has_zero_points(spec) ? static_cast<double>(spec.quant_min() + spec.quant_max() + 1) / 2
                               : 0.0;
}

// round with derivative 1, as torch writes it: x + (round(x) - x).detach().
at::Tensor straight_through_round(const at::Tensor& x) {
  return x.add(at::round(x).sub(x).detach());
}

// The definition in LSQ's own operations, which autograd differentiates: in fp64, where the values
// of codes are exact enough to leave every rounding where the implementation has it.
at::Tensor definition(const at::Tensor& weight, const LearnedRange& range,
                      const QuantizationSpec& spec) {
  const at::Tensor x = quantization::grouped(weight, spec);
  const at::Tensor scale = range.scale.unsqueeze(2);
  const at::Tensor offset = range.zero_point.defined() ? range.zero_point.unsqueeze(2)
                                                       : at::zeros({1, 1, 1}, x.options());
  const double low = static_cast<double>(spec.quant_min()) - middle(spec);
  const double high = static_cast<double>(spec.quant_max()) - middle(spec);
  const at::Tensor r = x.sub(offset).div(scale);
  // Clamping after rounding: what rounds to the last code is not clipped.
  const at::Tensor inside = at::round(r).ge(low).logical_and(at::round(r).le(high)).to(x.dtype());
  const at::Tensor clamped = at::clamp(at::round(r), low, high).detach();
  const at::Tensor code =
      straight_through_round(r).mul(inside).add(clamped.mul(at::full({}, 1.0).sub(inside)));
  return code.mul(scale).add(offset).reshape(weight.sizes());
}

TEST(LearnedRange, GradientsAreAutogradsOfTheDefinition) {
  for (const std::string& name : kSchemes) {
    SCOPED_TRACE(name);
    const QuantizationSpec spec = parse_scheme(name).weight;
    // The float domain computes in fp32.
    const auto dtype = has_zero_points(spec) ? at::kFloat : at::kDouble;
    const double tolerance = dtype == at::kDouble ? 1e-10 : 1e-4;
    const at::Tensor weight = at::randn({24, 64}).to(dtype);
    LearnedRange range = some_range(weight, spec);
    const auto stored = quantize(weight, range, spec);
    range.scale = stored.scale.to(dtype);
    if (stored.zero_point) {
      range.zero_point = stored.zero_point->to(dtype);
    }
    const at::Tensor grad = at::randn({24, 64}).to(dtype);
    const auto actual = learned_range_gradients(grad, weight, range, spec);

    const at::Tensor leaf = weight.clone().requires_grad_();
    LearnedRange leaves{range.scale.clone().requires_grad_(), range.zero_point};
    if (leaves.zero_point.defined()) {
      leaves.zero_point = leaves.zero_point.clone().requires_grad_();
    }
    const at::Tensor values = definition(leaf, leaves, spec);
    testing::expect_close(fake_quantized_values(weight, range, spec), values.detach(), tolerance);
    values.backward(grad);
    const int64_t group = 64 / range.scale.size(1);
    const double factor = 1.0 / std::sqrt(static_cast<double>(group) *
                                          (static_cast<double>(spec.quant_max()) - middle(spec)));
    testing::expect_close(actual.weight, leaf.grad(), tolerance);
    testing::expect_close(actual.range.scale, leaves.scale.grad().mul(factor), tolerance);
    if (leaves.zero_point.defined()) {
      testing::expect_close(actual.range.zero_point, leaves.zero_point.grad().mul(factor),
                            tolerance);
    }
    EXPECT_GT(actual.weight.eq(0).sum().item<int64_t>(), 0);  // something was clipped
  }
}

// Where codes do not flip, the values are linear in the scale: finite differences are exact.
TEST(LearnedRange, ThatOfAClippedValueIsTheFiniteDifference) {
  const QuantizationSpec spec = parse_scheme("intx-weight-only bits=4").weight;
  const at::Tensor weight = at::full({1, 8}, 100.0, at::kDouble);  // all clipped at code 7
  const at::Tensor scale = at::full({1, 1}, 0.25, at::kDouble);
  const at::Tensor grad = at::randn({1, 8}).to(at::kDouble);
  const auto loss = [&](double s) {
    return fake_quantized_values(weight, {at::full({1, 1}, s, at::kDouble), {}}, spec)
        .mul(grad)
        .sum()
        .item<double>();
  };
  const double numeric = (loss(0.26) - loss(0.24)) / 0.02;
  const auto actual = learned_range_gradients(grad, weight, {scale, {}}, spec);
  EXPECT_NEAR(actual.range.scale.item<double>(), numeric / std::sqrt(8.0 * 7.0), 1e-9);
  EXPECT_EQ(actual.weight.abs().max().item<double>(), 0.0);
}

TEST(LearnedRange, BeginsNoWorseThanRoundToNearest) {
  for (const std::string& name : kSchemes) {
    SCOPED_TRACE(name);
    const QuantizationSpec spec = parse_scheme(name).weight;
    const at::Tensor weight = at::randn({40, 64});
    const auto error = [&](const at::Tensor& values) {
      return quantization::grouped(values.sub(weight).square(), spec).sum({2});
    };
    const at::Tensor learned =
        error(fake_quantized_values(weight, initial_range(weight, spec), spec));
    const at::Tensor nearest = error(quantization::fake_quantize(weight, spec));
    EXPECT_TRUE(learned.le(nearest.mul(1.001)).all().item<bool>());
    if (spec.bits <= 4) {
      EXPECT_LT(learned.sum().item<double>(), nearest.sum().item<double>());
    }
  }
}

TEST(LearnedRange, AScaleBelowTheSmallestStillQuantizes) {
  const QuantizationSpec spec = parse_scheme("8da4w").weight;
  const at::Tensor weight = at::randn({4, 32});
  for (const double scale : {0.0, -1.0}) {
    const LearnedRange range{at::full({4, 1}, scale), {}};
    EXPECT_TRUE(fake_quantized_values(weight, range, spec).isfinite().all().item<bool>());
    const auto gradients = learned_range_gradients(at::randn({4, 32}), weight, range, spec);
    EXPECT_TRUE(gradients.range.scale.isfinite().all().item<bool>());
  }
}

// ---- the layer ----

std::shared_ptr<LearnedRangeLinear> make_layer(const Scheme& scheme, at::ScalarType dtype) {
  const nn::Linear linear({64, 48, true}, at::TensorOptions().dtype(dtype));
  const at::NoGradGuard no_grad;
  linear.weight.copy_(at::randn({48, 64}).mul(0.1));
  linear.bias.copy_(at::randn({48}));
  auto layer = std::make_shared<LearnedRangeLinear>(linear, scheme);
  const LearnedRange range = some_range(linear.weight, scheme.weight);
  layer->weight_scale.copy_(range.scale);
  if (range.zero_point.defined()) {
    layer->weight_zero_point.copy_(range.zero_point);
  }
  return layer;
}

TEST(LearnedRangeLinear, ComputesWithTheCodesThatAreWritten) {
  for (const std::string& name : kSchemes) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(name);
      const Scheme scheme = parse_scheme(name);
      const auto layer = make_layer(scheme, dtype);
      const at::Tensor x = at::randn({2, 5, 64}).to(dtype);
      const at::Tensor input =
          scheme.activation ? quantization::fake_quantize(x, *scheme.activation) : x;
      const at::Tensor values = quantization::dequantize(
          quantize(layer->weight, {layer->weight_scale, layer->weight_zero_point}, scheme.weight),
          dtype);
      const at::Tensor expected =
          at::linear(input.reshape({10, 64}), values, layer->bias).reshape({2, 5, 48}).detach();
      expect_bitwise_equal((*layer)(x).detach(), expected);
      const at::NoGradGuard no_grad;
      expect_bitwise_equal((*layer)(x), expected);
    }
  }
}

TEST(LearnedRangeLinear, TrainsEverythingThatItHas) {
  for (const std::string& name : kSchemes) {
    SCOPED_TRACE(name);
    const Scheme scheme = parse_scheme(name);
    const auto layer = make_layer(scheme, at::kFloat);
    const at::Tensor x = at::randn({10, 64}).requires_grad_();
    const at::Tensor grad = at::randn({10, 48});
    (*layer)(x).backward(grad);
    const at::Tensor input = scheme.activation
                                 ? quantization::fake_quantize(x.detach(), *scheme.activation)
                                 : x.detach();
    const LearnedRange range{layer->weight_scale.detach(), layer->weight_zero_point.defined()
                                                               ? layer->weight_zero_point.detach()
                                                               : at::Tensor()};
    const auto expected =
        learned_range_gradients(grad.t().mm(input), layer->weight.detach(), range, scheme.weight);
    expect_bitwise_equal(layer->weight.grad(), expected.weight);
    expect_bitwise_equal(layer->weight_scale.grad(), expected.range.scale);
    if (range.zero_point.defined()) {
      expect_bitwise_equal(layer->weight_zero_point.grad(), expected.range.zero_point);
    }
    expect_bitwise_equal(layer->bias.grad(), grad.sum(0));
    EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
  }
}

TEST(LearnedRangeLinear, IsPlainWhereItIsSwitchedOff) {
  const auto layer = make_layer(parse_scheme("8da4w"), at::kFloat);
  layer->set_fake_quant_enabled(false);
  const at::Tensor x = at::randn({3, 64});
  expect_bitwise_equal((*layer)(x).detach(), at::linear(x, layer->weight, layer->bias).detach());
}

TEST(LearnedRangeLinear, RefusesRangesThatAreNotFree) {
  const nn::Linear linear({64, 48, false}, at::TensorOptions());
  for (const char* name :
       {"mxfp4", "nvfp4", "gguf-q4_0", "float8-weight-only", "float8-act-int4-weight group_size=32",
        "intx-weight-only bits=4 mapping=asymmetric"}) {
    EXPECT_THROW(LearnedRangeLinear(linear, parse_scheme(name)), c10::Error) << name;
  }
}

// ---- convert ----

TEST(Convert, WritesTheLearnedRange) {
  nn::TransformerConfig config;
  config.vocab_size = 12;
  config.dim = 64;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.ffn_dim = 96;
  const std::string fqn = "layers.0.self_attn.qkv_proj";
  for (const char* name : {"8da4w", "int4-weight-only group_size=32"}) {
    SCOPED_TRACE(name);
    const Scheme scheme = parse_scheme(name);
    const std::vector<PreparedLayer> layers = {{fqn, scheme, true}};
    std::map<std::string, at::Tensor> parameters;
    for (const checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config)) {
      parameters.emplace(spec.name, at::randn(spec.sizes));
    }
    const LearnedRange range = some_range(parameters.at(fqn + ".weight"), scheme.weight);
    parameters.emplace(fqn + ".weight_scale", range.scale);
    if (range.zero_point.defined()) {
      parameters.emplace(fqn + ".weight_zero_point", range.zero_point);
    }
    std::vector<std::string> asked;
    const auto model =
        convert(config, layers, at::kBFloat16, at::kFloat, [&](const std::string& parameter) {
          asked.push_back(parameter);
          return parameters.at(parameter);
        });
    EXPECT_EQ(asked, parameters_to_convert(config, layers));
    const LearnedRange read{range.scale.to(at::kBFloat16), range.zero_point.defined()
                                                               ? range.zero_point.to(at::kBFloat16)
                                                               : at::Tensor()};
    const at::Tensor values = fake_quantized_values(
        parameters.at(fqn + ".weight").to(at::kBFloat16), read, scheme.weight);
    const auto& k = model.weights.at("model.layers.0.self_attn.k_proj");
    expect_bitwise_equal(quantization::dequantize(k.tensor, k.dtype),
                         values.narrow(0, 64, 32).contiguous());
  }
}

}  // namespace
}  // namespace narrowgauge::qat
