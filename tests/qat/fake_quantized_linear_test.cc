#include "qat/fake_quantized_linear.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "checkpoint/huggingface_names.h"
#include "nn/embedding.h"
#include "qat/convert.h"
#include "qat/fake_quantize.h"
#include "qat/fake_quantized_embedding.h"
#include "qat/prepare.h"
#include "quantization/quantized_tensor.h"
#include "tests/support/numerics.h"

namespace narrowgauge::qat {
namespace {

using quantization::Scheme;
using quantization::scheme_by_name;
using testing::expect_bitwise_equal;

std::shared_ptr<nn::Linear> make_linear(at::ScalarType dtype) {
  const auto linear =
      std::make_shared<nn::Linear>(nn::LinearSpec{256, 48, true}, at::TensorOptions().dtype(dtype));
  const at::NoGradGuard no_grad;
  linear->weight.copy_(at::randn({48, 256}).mul(0.05));
  linear->bias.copy_(at::randn({48}));
  for (const at::Tensor& parameter : linear->parameters()) {
    parameter.set_requires_grad(true);
  }
  return linear;
}

// What a runtime computes from the codes.
at::Tensor converted_output(const at::Tensor& x, const nn::Linear& linear, const Scheme& scheme) {
  const auto dtype = x.scalar_type();
  const at::Tensor input =
      scheme.activation
          ? quantization::dequantize(quantization::quantize(x, *scheme.activation), dtype)
          : x;
  const auto weight = quantization::quantize(linear.weight.detach(), scheme.weight);
  return at::linear(input, quantization::dequantize(weight, dtype), linear.bias.detach());
}

TEST(FakeQuantizedLinear, PrepareIsConvertForEverySchemeAndDtype) {
  for (const std::string& name : quantization::scheme_names()) {
    const Scheme scheme = scheme_by_name(name);
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      SCOPED_TRACE(name + " " + c10::toString(dtype));
      const auto owned = make_linear(dtype);
      nn::Linear& linear = *owned;
      FakeQuantizedLinear prepared(linear, scheme);
      const at::Tensor x = at::randn({5, 7, 256}).to(dtype);
      const at::Tensor expected = converted_output(x, linear, scheme);
      expect_bitwise_equal(prepared(x).detach(), expected);
      const at::NoGradGuard no_grad;
      expect_bitwise_equal(prepared(x), expected);
    }
  }
}

// Products with the fake-quantized operands, masks where something was clipped, in the dtype of
// training. The scale of the gradient does not matter, and the bias is trained.
TEST(FakeQuantizedLinear, GradientsAreStraightThrough) {
  for (const std::string& name : quantization::scheme_names()) {
    const Scheme scheme = scheme_by_name(name);
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const double scale : {1e-4, 1.0, 1e3}) {
        SCOPED_TRACE(name + " " + std::to_string(scale));
        const auto owned = make_linear(dtype);
        nn::Linear& linear = *owned;
        FakeQuantizedLinear prepared(linear, scheme);
        const at::Tensor x = at::randn({12, 256}).to(dtype).requires_grad_(true);
        const at::Tensor grad = at::randn({12, 48}).mul(scale).to(dtype);
        prepared(x).backward(grad);
        const FakeQuantized input = scheme.activation ? fake_quantize_with_clipped_reference(
                                                            x, *scheme.activation, dtype, true)
                                                      : FakeQuantized{x.detach(), {}};
        const FakeQuantized weight =
            fake_quantize_with_clipped_reference(linear.weight, scheme.weight, dtype, true);
        expect_bitwise_equal(x.grad(), zero_clipped(at::mm(grad, weight.values), input.clipped));
        expect_bitwise_equal(linear.weight.grad(),
                             zero_clipped(at::mm(grad.t(), input.values), weight.clipped));
        expect_bitwise_equal(linear.bias.grad(), grad.sum(0, false, dtype));
      }
    }
  }
}

TEST(FakeQuantizedLinear, DisabledItIsTheLinear) {
  const auto owned = make_linear(at::kBFloat16);
  nn::Linear& linear = *owned;
  FakeQuantizedLinear prepared(linear, scheme_by_name("8da4w"));
  const at::Tensor x = at::randn({4, 256}).to(at::kBFloat16);
  const at::Tensor plain = linear(x).detach();
  prepared.set_fake_quant_enabled(false);
  expect_bitwise_equal(prepared(x).detach(), plain);
  prepared.set_fake_quant_enabled(true);
  EXPECT_FALSE(prepared(x).detach().equal(plain));
}

TEST(FakeQuantizedLinear, TakesNoTokensAndFrozenWeights) {
  const auto owned = make_linear(at::kFloat);
  nn::Linear& linear = *owned;
  linear.weight.set_requires_grad(false);
  FakeQuantizedLinear prepared(linear, scheme_by_name("8da4w"));
  const at::Tensor x = at::randn({3, 256}).requires_grad_(true);
  prepared(x).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(linear.weight.grad().defined());
  EXPECT_TRUE(linear.bias.grad().defined());
  EXPECT_EQ(prepared(at::zeros({0, 256})).sizes(), at::IntArrayRef({0, 48}));
}

TEST(FakeQuantizedEmbedding, LooksUpQuantizedRowsAndTrainsThem) {
  nn::Embedding table(20, 64, at::TensorOptions());
  {
    const at::NoGradGuard no_grad;
    table.weight.copy_(at::randn({20, 64}));
  }
  table.weight.set_requires_grad(true);
  const Scheme scheme = scheme_by_name("intx-weight-only", {.group_size = 32, .bits = 4});
  FakeQuantizedEmbedding prepared(table, scheme);
  const at::Tensor tokens = at::randint(0, 20, {3, 5}, at::kLong);
  const at::Tensor whole = quantization::fake_quantize(table.weight.detach(), scheme.weight);
  expect_bitwise_equal(prepared(tokens).detach(),
                       whole.index_select(0, tokens.flatten()).reshape({3, 5, 64}));
  prepared(tokens).sum().backward();
  EXPECT_GT(table.weight.grad().abs().sum().item<double>(), 0.0);
  EXPECT_THROW(FakeQuantizedEmbedding(table, scheme_by_name("nvfp4")), c10::Error);
}

// ---- prepare ----

class Model : public nn::Layer {
 public:
  Model() {
    add_child("embed_tokens", embed_tokens,
              std::make_shared<nn::Embedding>(10, 64, at::TensorOptions()));
    add_child("up_proj", up_proj, linear(64, 96));
    add_child("down_proj", down_proj, linear(96, 64));
    add_child("odd", odd, linear(33, 64));
    add_child("lm_head", lm_head, linear(64, 10));
  }
  static std::shared_ptr<nn::Linear> linear(int64_t in, int64_t out) {
    return std::make_shared<nn::Linear>(nn::LinearSpec{in, out, false}, at::TensorOptions());
  }
  std::shared_ptr<nn::Embedding> embed_tokens;
  std::shared_ptr<nn::Linear> up_proj, down_proj, odd, lm_head;
};

std::string scheme_name(Model& model, const std::string& fqn) {
  for (const PreparedLayer& layer : prepared_layers(model)) {
    if (layer.fqn == fqn) {
      return layer.scheme.name;
    }
  }
  return "";
}

TEST(Prepare, TheDefaultTakesLinearsThatFitButTheHead) {
  Model model;
  const at::Tensor weight = model.up_proj->weight;
  const auto decisions = prepare(model, {.scheme = scheme_by_name("8da4w"), .rules = {}});
  EXPECT_EQ(decisions.size(), 5U);
  EXPECT_EQ(prepared_layers(model).size(), 2U);
  EXPECT_TRUE(model.up_proj->weight.is_same(weight));
  EXPECT_EQ(scheme_name(model, "lm_head"), "");
  EXPECT_EQ(scheme_name(model, "odd"), "");
  EXPECT_EQ(model.named_parameters().size(), 5U);
  EXPECT_EQ(describe(decisions).size(), 5U);
}

TEST(Prepare, TheFirstRuleThatMatchesDecides) {
  Model model;
  PrepareConfig config{.scheme = scheme_by_name("8da4w"), .rules = {}};
  for (const char* rule :
       {"down_proj=none", "re:.*_proj=int8-weight-only", "lm_head=int4-weight-only group_size=32",
        "embed_*=intx-weight-only bits=4"}) {
    config.rules.push_back(parse_module_rule(rule));
  }
  prepare(model, config);
  EXPECT_EQ(scheme_name(model, "down_proj"), "");
  EXPECT_EQ(scheme_name(model, "up_proj"), "int8-weight-only");
  EXPECT_EQ(scheme_name(model, "lm_head"), "int4-weight-only");
  EXPECT_EQ(scheme_name(model, "embed_tokens"), "intx-weight-only");
}

TEST(Prepare, RefusesWhatCanNotBeMeant) {
  const auto with_rule = [](const char* text, bool tied = false) {
    Model model;
    PrepareConfig config{
        .scheme = std::nullopt, .rules = {parse_module_rule(text)}, .tied_embeddings = tied};
    prepare(model, config);
  };
  EXPECT_THROW(with_rule("no_such_layer=8da4w"), c10::Error);
  EXPECT_THROW(with_rule("odd=8da4w"), c10::Error);
  EXPECT_THROW(with_rule("embed_tokens=intx-weight-only", true), c10::Error);
  EXPECT_NO_THROW(with_rule("odd=int8-weight-only"));
  EXPECT_THROW(parse_module_rule("up_proj"), c10::Error);
  EXPECT_THROW(parse_module_rule("re:(=8da4w"), c10::Error);
  EXPECT_THROW(parse_module_rule("up_proj=8da4w groups=3"), c10::Error);
}

TEST(Prepare, ConvertToPlainUndoesIt) {
  Model model;
  PrepareConfig config{.scheme = scheme_by_name("8da4w"), .rules = {}};
  config.rules.push_back(parse_module_rule("embed_tokens=intx-weight-only bits=4"));
  prepare(model, config);
  set_fake_quant_enabled(model, false);
  EXPECT_EQ(convert_to_plain(model), 3);
  EXPECT_TRUE(prepared_layers(model).empty());
}

// ---- convert ----

TEST(Convert, WritesWhatForwardReadAndTakesProjectionsApart) {
  nn::TransformerConfig config;
  config.vocab_size = 12;
  config.dim = 64;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.ffn_dim = 96;
  std::map<std::string, at::Tensor> parameters;
  for (const checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config)) {
    parameters.emplace(spec.name, at::randn(spec.sizes));
  }
  const Scheme scheme = scheme_by_name("8da4w");
  const auto model =
      convert(config, {{"layers.0.self_attn.qkv_proj", scheme}}, at::kBFloat16, at::kFloat,
              [&](const std::string& name) { return parameters.at(name); });
  ASSERT_EQ(model.weights.size(), 3U);
  const at::Tensor fused = parameters.at("layers.0.self_attn.qkv_proj.weight").to(at::kBFloat16);
  const at::Tensor values = qat::fake_quantize(fused, scheme.weight);
  const auto& k = model.weights.at("model.layers.0.self_attn.k_proj");
  expect_bitwise_equal(quantization::dequantize(k.tensor, k.dtype),
                       values.narrow(0, 64, 32).contiguous());
  expect_bitwise_equal(model.plain.at("model.norm.weight"), parameters.at("norm.weight"));
  EXPECT_FALSE(model.plain.contains("model.layers.0.self_attn.k_proj.weight"));
}

}  // namespace
}  // namespace narrowgauge::qat
