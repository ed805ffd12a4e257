#include "float8/float8_linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "float8/cast.h"
#include "float8/scaled_mm.h"
#include "tests/support/numerics.h"

namespace narrowgauge::float8 {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::sqnr_db;

struct Linears {
  std::shared_ptr<nn::Linear> reference;
  std::shared_ptr<Float8Linear> float8;
};

// Two linears of equal values, each with leaves of its own.
Linears make_linears(const Float8LinearConfig& config, const nn::LinearSpec& spec,
                     at::ScalarType dtype) {
  const auto options = at::TensorOptions(dtype);
  auto reference = std::make_shared<nn::Linear>(spec, options);
  auto copy = std::make_shared<nn::Linear>(spec, options);
  const double bound = 1.0 / std::sqrt(static_cast<double>(spec.in_features));
  for (const auto& parameter : reference->named_parameters()) {
    const at::Tensor value = at::randn(parameter.value().sizes()).mul(bound).to(dtype);
    parameter.value().detach().copy_(value);
    copy->named_parameters()[parameter.key()].detach().copy_(value);
  }
  return {reference, std::make_shared<Float8Linear>(*copy, config)};
}

Float8LinearConfig recipe(std::string_view name) {
  return Float8LinearConfig::from_recipe_name(name);
}

std::vector<std::string> names() { return {recipe_names().begin(), recipe_names().end()}; }

class EveryRecipe : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Recipes, EveryRecipe, ::testing::ValuesIn(names()),
                         [](const auto& info) { return info.param; });

// torchao's test_linear_from_config_params and _from_recipe, with gradients of the input as well.
TEST_P(EveryRecipe, LinearFromRecipe) {
  const std::vector<std::vector<int64_t>> shapes = {{16, 16}, {2, 16, 16}, {3, 2, 16, 16}};
  for (const auto& shape : shapes) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
      for (const bool bias : {false, true}) {
        const auto [reference, float8] = make_linears(recipe(GetParam()), {16, 32, bias}, dtype);
        for (int iteration = 0; iteration < 2; ++iteration) {
          const at::Tensor x = at::randn(shape).to(dtype);
          const at::Tensor x_reference = x.clone().set_requires_grad(true);
          const at::Tensor x_float8 = x.clone().set_requires_grad(true);
          const at::Tensor y_reference = (*reference)(x_reference);
          const at::Tensor y = (*float8)(x_float8);
          ASSERT_EQ(y.sizes(), y_reference.sizes());
          EXPECT_EQ(y.scalar_type(), dtype);
          EXPECT_GE(sqnr_db(y_reference, y), 18.0);
          const at::Tensor grad = at::randn(y.sizes()).to(dtype);
          y_reference.backward(grad);
          y.backward(grad);
          EXPECT_GE(sqnr_db(reference->weight.grad(), float8->weight.grad()), 17.0);
          EXPECT_GE(sqnr_db(x_reference.grad(), x_float8.grad()), 17.0);
          if (bias) {
            EXPECT_GE(sqnr_db(reference->bias.grad(), float8->bias.grad()), 40.0);
          }
        }
      }
    }
  }
}

// torchao's test_numerics_integration (SwiGLU feed-forward, loss = sum, two inputs: outputs and
// every gradient above 20 dB), at an eighth of its width.
TEST_P(EveryRecipe, EncoderFfnNumerics) {
  constexpr int64_t kDim = 512;
  constexpr int64_t kHidden = 1408;
  std::vector<Linears> layers;
  for (const auto& [in, out] : {std::pair{kDim, kHidden}, {kDim, kHidden}, {kHidden, kDim}}) {
    layers.push_back(make_linears(recipe(GetParam()), {in, out, false}, at::kBFloat16));
  }
  const auto ffn = [&](const at::Tensor& x, bool float8) {
    const auto run = [&](const Linears& linears, const at::Tensor& input) {
      return float8 ? (*linears.float8)(input) : (*linears.reference)(input);
    };
    return run(layers[2], at::silu(run(layers[0], x)).mul(run(layers[1], x)));
  };
  for (int iteration = 0; iteration < 2; ++iteration) {
    const at::Tensor x = at::randn({1, 256, kDim}).to(at::kBFloat16);
    const at::Tensor y_reference = ffn(x, false);
    const at::Tensor y = ffn(x, true);
    EXPECT_GT(sqnr_db(y_reference, y), 20.0);
    y_reference.sum().backward();
    y.sum().backward();
  }
  for (const Linears& linears : layers) {
    EXPECT_GT(sqnr_db(linears.reference->weight.grad(), linears.float8->weight.grad()), 20.0);
  }
}

// The formulas themselves, in emulation: every bit.
TEST_P(EveryRecipe, EmulationIsTheFormula) {
  Float8LinearConfig config = recipe(GetParam());
  config.emulate = true;
  const auto linears = make_linears(config, {160, 192, true}, at::kBFloat16);
  Float8Linear& linear = *linears.float8;
  const at::Tensor x = at::randn({96, 160}).to(at::kBFloat16).set_requires_grad(true);
  const at::Tensor g = at::randn({96, 192}).mul(1e-3).to(at::kBFloat16);
  const at::Tensor y = linear(x);
  y.backward(g);

  const auto cast = [](const at::Tensor& hp, const CastConfig& config, int64_t dim) {
    return hp_tensor_to_float8_dynamic(hp, config.spec, dim);
  };
  const auto product = [](const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                          const at::Tensor& bias = {}) {
    return scaled_mm_reference(a, b, at::kBFloat16, bias);
  };
  const at::Tensor weight = linear.weight.detach();
  const at::Tensor input = x.detach();
  expect_bitwise_equal(y.detach(),
                       product(cast(input, config.cast_config_input, 1),
                               cast(weight, config.cast_config_weight, 1), linear.bias.detach()));
  expect_bitwise_equal(
      x.grad(), product(cast(g, config.cast_config_grad_output, 1),
                        transpose(cast(weight, config.cast_config_weight_for_grad_input, 0))));
  const CastConfig& for_grad_weight = config.cast_config_input_for_grad_weight;
  const at::Tensor expected =
      for_grad_weight.scaling_type == ScalingType::kDisabled
          ? at::mm(g.t(), input)
          : product(transpose(cast(g, config.cast_config_grad_output_for_grad_weight, 0)),
                    transpose(cast(input, for_grad_weight, 0)));
  expect_bitwise_equal(linear.weight.grad(), expected);
  expect_bitwise_equal(linear.bias.grad(), g.sum(0));
}

// What differs between the product of hardware and its emulation is the order of sums and one
// rounding: torchao's test_scaled_mm_vs_emulated, 7e-2 in bf16.
TEST_P(EveryRecipe, ProductsAgreeWithEmulation) {
  Float8LinearConfig emulated = recipe(GetParam());
  emulated.emulate = true;
  const auto linears = make_linears(recipe(GetParam()), {256, 128, true}, at::kBFloat16);
  Float8Linear reference(*linears.reference, emulated);
  reference.weight.detach().copy_(linears.float8->weight.detach());
  reference.bias.detach().copy_(linears.float8->bias.detach());
  const at::Tensor x = at::randn({2, 40, 256}).to(at::kBFloat16);
  const at::Tensor a = x.clone().set_requires_grad(true);
  const at::Tensor b = x.clone().set_requires_grad(true);
  const at::Tensor y = (*linears.float8)(a);
  const at::Tensor expected = reference(b);
  const at::Tensor g = at::randn(y.sizes()).to(at::kBFloat16);
  y.backward(g);
  expected.backward(g);
  const auto close = [](const at::Tensor& actual, const at::Tensor& reference) {
    EXPECT_TRUE(actual.allclose(reference, 7e-2, 7e-2));
    EXPECT_GT(sqnr_db(reference, actual), 45.0);
  };
  close(y.detach(), expected.detach());
  close(a.grad(), b.grad());
  close(linears.float8->weight.grad(), reference.weight.grad());
}

TEST_P(EveryRecipe, SavesFp8AndNotTheInput) {
  const Float8LinearConfig config = recipe(GetParam());
  const auto linears = make_linears(config, {160, 192, false}, at::kBFloat16);
  at::Tensor leaf = at::randn({96, 160}).to(at::kBFloat16).set_requires_grad(true);
  at::Tensor x = leaf.mul(2);
  const c10::weak_intrusive_ptr<c10::StorageImpl> storage(x.storage().getWeakStorageImpl());
  const SavedBytes saved = saved_bytes(config, linears.float8->spec, 96, at::kBFloat16);
  EXPECT_EQ(saved.linear, 2 * 96 * 160);
  const at::Tensor y = (*linears.float8)(x);
  const CastConfig& cast = config.cast_config_input_for_grad_weight;
  const bool in_hp = cast.scaling_type == ScalingType::kDisabled;
  const int64_t expected =
      in_hp ? saved.linear : hp_tensor_to_float8_dynamic(x.detach(), cast.spec, 0).size_bytes();
  EXPECT_EQ(saved.float8_linear, expected);
  x.reset();
  EXPECT_EQ(storage.expired(), !in_hp);
  y.sum().backward();
  EXPECT_TRUE(leaf.grad().defined());
}

TEST_P(EveryRecipe, FrozenPartsCostNothingAndTheRestIsUnchanged) {
  const auto linears = make_linears(recipe(GetParam()), {64, 96, true}, at::kBFloat16);
  Float8Linear& linear = *linears.float8;
  const at::Tensor x = at::randn({32, 64}).to(at::kBFloat16);
  const at::Tensor g = at::randn({32, 96}).to(at::kBFloat16);
  const at::Tensor all = x.clone().set_requires_grad(true);
  const at::Tensor y = linear(all);
  y.backward(g);
  const at::Tensor grad_weight = linear.weight.grad().clone();
  const at::Tensor grad_bias = linear.bias.grad().clone();

  linear.weight.mutable_grad().reset();
  linear.bias.mutable_grad().reset();
  linear(x).backward(g);  // an input without gradient
  expect_bitwise_equal(linear.weight.grad(), grad_weight);

  linear.weight.mutable_grad().reset();
  linear.bias.mutable_grad().reset();
  linear.weight.set_requires_grad(false);
  const at::Tensor other = x.clone().set_requires_grad(true);
  linear(other).backward(g);
  expect_bitwise_equal(other.grad(), all.grad());
  expect_bitwise_equal(linear.bias.grad(), grad_bias);
  EXPECT_FALSE(linear.weight.grad().defined());

  const at::NoGradGuard no_grad;
  expect_bitwise_equal(linear(x), y.detach());
  linear.bias.set_requires_grad(false);
  const at::AutoGradMode grad(true);
  EXPECT_FALSE(linear(x).requires_grad());
}

TEST_P(EveryRecipe, EmptyBatch) {
  const auto linears = make_linears(recipe(GetParam()), {64, 96, true}, at::kBFloat16);
  const at::Tensor x = at::zeros({2, 0, 64}, at::kBFloat16).set_requires_grad(true);
  const at::Tensor y = (*linears.float8)(x);
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 0, 96}));
  y.sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
  EXPECT_EQ(linears.float8->weight.grad().abs().max().item<double>(), 0.0);
  EXPECT_EQ(linears.float8->bias.grad().abs().max().item<double>(), 0.0);
}

// Vectors, rows of other strides, an expanded gradient, sizes that no block divides.
TEST_P(EveryRecipe, AnyShapeAndStride) {
  const auto linears = make_linears(recipe(GetParam()), {70, 50, false}, at::kFloat);
  Float8Linear& linear = *linears.float8;
  const at::Tensor x = at::randn({13, 70}).set_requires_grad(true);
  const at::Tensor y = linear(x);
  y.sum().backward();
  EXPECT_GT(sqnr_db((*linears.reference)(x).detach(), y.detach()), 20.0);
  const at::Tensor strided = x.detach().t().contiguous().t().set_requires_grad(true);
  linear(strided).sum().backward();
  expect_bitwise_equal(strided.grad(), x.grad());
  EXPECT_EQ(linear(x.detach()[0]).sizes(), (std::vector<int64_t>{50}));
  EXPECT_THROW(linear(at::randn({4, 71})), c10::Error);
}

// A NaN or an infinity in an operand with scales of its own reaches the result. (Of delayed
// scaling that is the first step; for later ones see Float8Training.NotFiniteAmaxNamesTheLayer.)
TEST_P(EveryRecipe, NotFiniteIsNotHidden) {
  const auto linears = make_linears(recipe(GetParam()), {64, 96, false}, at::kBFloat16);
  const at::NoGradGuard no_grad;
  for (const double value :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const at::Tensor x = at::randn({32, 64}).to(at::kBFloat16);
    x[3][5].fill_(value);
    EXPECT_TRUE((*linears.float8)(x)[3].isfinite().logical_not().all().item<bool>()) << value;
  }
}

TEST(Float8Linear, DelayedScalesComeFromTheStepsBefore) {
  Float8LinearConfig config = recipe("delayed");
  config.amax_history_len = 2;
  const auto linears = make_linears(config, {64, 96, false}, at::kBFloat16);
  Float8Linear& linear = *linears.float8;
  Operand& input = linear.state().input;
  const auto dynamic = std::make_shared<Float8Linear>(*linears.float8, recipe("tensorwise"));

  const at::Tensor x = at::randn({32, 64}).to(at::kBFloat16);
  const at::Tensor larger = x.mul(1.5);
  // Without history a cast takes its own scale, and every cast of the step counts.
  expect_bitwise_equal(linear(x).detach(), (*dynamic)(x).detach());
  expect_bitwise_equal(linear(larger).detach(), (*dynamic)(larger).detach());
  const at::Tensor amax = input.take_amax();
  EXPECT_EQ(amax.item<float>(), larger.abs().max().item<float>());
  EXPECT_FALSE(input.take_amax().defined());
  input.history().push(amax.item<float>());
  linear.state().weight.history().push(linear.state().weight.take_amax().item<float>());

  // Now the scale is that of `larger`.
  const auto with_scale = [&](const at::Tensor& value) {
    const CastSpec spec = config.cast_config_input.spec;
    return scaled_mm(
        hp_tensor_and_scale_to_float8(value, amax_to_scale(amax, spec), spec, 1),
        hp_tensor_to_float8_dynamic(linear.weight.detach(), config.cast_config_weight.spec, 1),
        at::kBFloat16);
  };
  expect_bitwise_equal(linear(x).detach(), with_scale(x));
  // Twice what was seen saturates, without gradients too.
  const at::NoGradGuard no_grad;
  expect_bitwise_equal(linear(larger.mul(2)), with_scale(larger.mul(2)));
  // What is computed without gradients is not remembered.
  EXPECT_EQ(input.take_amax().item<float>(), x.abs().max().item<float>());
}

TEST(Float8Linear, HealthCountsWhatCastsLose) {
  const auto linears = make_linears(recipe("delayed"), {64, 96, false}, at::kFloat);
  Float8Linear& linear = *linears.float8;
  linear.state().input.history().push(1.0F);
  linear.state().input.set_sampling(true);
  const at::Tensor x = at::randn({8, 64}).clamp(-1, 1).mul(0.5).add(0.01);
  x[0][0].fill_(100.0);
  x[0][1].fill_(-5.0);
  x[0][2].fill_(1e-7);  // times 448 below half of 2^-9
  x[0][3].fill_(0.0);   // zero itself is no loss
  linear(x);
  const OperandHealth health = linear.state().input.take_health();
  EXPECT_EQ(health.num_elements, 8 * 64);
  EXPECT_EQ(health.num_saturated, 2);
  EXPECT_EQ(health.num_underflowed, 1);
  EXPECT_FLOAT_EQ(health.scale_min, 448.0);
  EXPECT_FLOAT_EQ(health.scale_max, 448.0);
  EXPECT_EQ(linear.state().input.take_health().num_elements, 0);
}

// torchao's test_blockwise_quant_linear_fwd_bwd (256 tokens, loss = sum; output at least 25 dB,
// both gradients 30 dB), at a quarter of its in_features and with a bias, which its layer has not.
TEST(Float8Linear, BlockwiseQuantLinearFwdBwd) {
  const auto [reference, float8] =
      make_linears(recipe("blockwise"), {1024, 1280, true}, at::kFloat);
  const at::Tensor x = at::randn({1, 256, 1024});
  const at::Tensor a = x.clone().set_requires_grad(true);
  const at::Tensor b = x.clone().set_requires_grad(true);
  const at::Tensor y_reference = (*reference)(a);
  const at::Tensor y = (*float8)(b);
  EXPECT_GE(sqnr_db(y_reference.detach(), y.detach()), 25.0);
  y_reference.sum().backward();
  y.sum().backward();
  EXPECT_GE(sqnr_db(a.grad(), b.grad()), 30.0);
  EXPECT_GE(sqnr_db(reference->weight.grad(), float8->weight.grad()), 30.0);
  expect_bitwise_equal(float8->bias.grad(), reference->bias.grad());
}

// torchao's thresholds for its mxfp8 linear: output 27 dB (26 with a bias), grad_input 25 dB,
// grad_weight 24 dB, bias 40 dB. floor is the specification's rule, which clips up to an eighth of
// the largest values of a block; torchao's rounds up and does not.
TEST(Float8Linear, Mxfp8Linear) {
  for (const char* rounding : {"rceil", "floor"}) {
    for (const bool bias : {false, true}) {
      Float8LinearConfig config = recipe("mxfp8");
      for (const char* operand : {"input=", "weight=", "grad_output="}) {
        override_cast(config, std::string(operand) + rounding);
      }
      const auto [reference, float8] = make_linears(config, {512, 384, bias}, at::kBFloat16);
      const at::Tensor x = at::randn({2, 128, 512}).to(at::kBFloat16);
      const at::Tensor a = x.clone().set_requires_grad(true);
      const at::Tensor b = x.clone().set_requires_grad(true);
      const at::Tensor y_reference = (*reference)(a);
      const at::Tensor y = (*float8)(b);
      const at::Tensor g = at::randn(y.sizes()).to(at::kBFloat16);
      y_reference.backward(g);
      y.backward(g);
      EXPECT_GE(sqnr_db(y_reference.detach(), y.detach()), bias ? 26.0 : 27.0) << rounding;
      EXPECT_GE(sqnr_db(a.grad(), b.grad()), 25.0) << rounding;
      EXPECT_GE(sqnr_db(reference->weight.grad(), float8->weight.grad()), 24.0) << rounding;
      if (bias) {
        EXPECT_GE(sqnr_db(reference->bias.grad(), float8->bias.grad()), 40.0);
      }
    }
  }
}

TEST(Float8Linear, RefusesASecondDerivative) {
  const auto linears = make_linears(recipe("tensorwise"), {16, 16, false}, at::kFloat);
  const at::Tensor x = at::randn({16, 16}).set_requires_grad(true);
  const at::Tensor y = (*linears.float8)(x).sum();
  EXPECT_THROW(y.backward({}, /*retain_graph=*/true, /*create_graph=*/true), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::float8
