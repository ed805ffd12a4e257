#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoint/durable_file.h"
#include "checkpoint/huggingface_names.h"
#include "checkpoint/safetensors.h"
#include "lora/adapters.h"
#include "lora/lora_linear.h"
#include "nn/transformer.h"
#include "qat/fake_quantize.h"
#include "qat/prepare.h"
#include "tests/support/numerics.h"

namespace narrowgauge::lora {
namespace {

using testing::expect_bitwise_equal;

const LoRASpec kSpec{.rank = 4, .alpha = 8.0};

std::shared_ptr<nn::Linear> make_linear(at::ScalarType dtype) {
  const auto linear =
      std::make_shared<nn::Linear>(nn::LinearSpec{64, 48, false}, at::TensorOptions().dtype(dtype));
  const at::NoGradGuard no_grad;
  linear->weight.copy_(at::randn({48, 64}).mul(0.1));
  linear->weight.set_requires_grad(false);
  return linear;
}

template <typename Adapted>
void fill(Adapted& adapted, bool with_b) {
  const at::NoGradGuard no_grad;
  adapted.lora_A.copy_(at::randn(adapted.lora_A.sizes()));
  adapted.lora_B.copy_(with_b ? at::randn(adapted.lora_B.sizes()).mul(0.1)
                              : at::zeros(adapted.lora_B.sizes()));
  adapted.lora_A.set_requires_grad(true);
  adapted.lora_B.set_requires_grad(true);
}

TEST(LoRALinear, BeginsAsTheLinear) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto linear = make_linear(dtype);
    LoRALinear adapted(*linear, kSpec);
    fill(adapted, false);
    const at::Tensor x = at::randn({2, 3, 64}).to(dtype);
    expect_bitwise_equal(adapted(x).detach(), (*linear)(x).detach());
  }
}

TEST(LoRALinear, IsTheMergedLinearAndTrainsTheAdapterAlone) {
  const auto linear = make_linear(at::kFloat);
  LoRALinear adapted(*linear, kSpec);
  fill(adapted, true);
  const at::Tensor x = at::randn({10, 64});
  const at::Tensor merged = merged_weight(linear->weight, adapted.lora_A, adapted.lora_B, kSpec);
  testing::expect_close(adapted(x).detach(), at::linear(x, merged).detach(), 1e-5);
  const at::Tensor grad = at::randn({10, 48});
  adapted(x).backward(grad);
  EXPECT_FALSE(linear->weight.grad().defined());
  const at::Tensor grad_weight = at::mm(grad.t(), x).mul(kSpec.scaling());
  testing::expect_close(adapted.lora_B.grad(), at::mm(grad_weight, adapted.lora_A.t()).detach(),
                        1e-5);
  testing::expect_close(adapted.lora_A.grad(), at::mm(adapted.lora_B.t(), grad_weight).detach(),
                        1e-5);
}

TEST(LoRAFakeQuantizedLinear, QuantizesWhatMergingGives) {
  const auto scheme = quantization::scheme_by_name("8da4w");
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto linear = make_linear(dtype);
    const qat::FakeQuantizedLinear prepared(*linear, scheme);
    LoRAFakeQuantizedLinear adapted(prepared, kSpec);
    fill(adapted, true);
    const at::Tensor x = at::randn({10, 64}).to(dtype);
    const at::Tensor merged =
        merged_weight(linear->weight, adapted.lora_A, adapted.lora_B, kSpec).detach();
    const at::Tensor expected = at::linear(qat::fake_quantize(x, *scheme.activation),
                                           qat::fake_quantize(merged, scheme.weight));
    expect_bitwise_equal(adapted(x).detach(), expected);
    adapted(x).sum().backward();
    EXPECT_GT(adapted.lora_A.grad().abs().sum().item<double>(), 0.0);
    EXPECT_GT(adapted.lora_B.grad().abs().sum().item<double>(), 0.0);
    EXPECT_FALSE(linear->weight.grad().defined());
  }
}

nn::TransformerConfig tiny() {
  nn::TransformerConfig config;
  config.vocab_size = 12;
  config.dim = 64;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.ffn_dim = 96;
  return config;
}

TEST(Adapters, AreAddedWhereTargetsSayAndAllElseIsFrozen) {
  nn::Transformer model(tiny(), at::TensorOptions());
  qat::prepare(model, {.scheme = quantization::scheme_by_name("8da4w"), .rules = {}});
  const auto names = add_adapters(model, kSpec, {"self_attn.*", "down_proj"});
  EXPECT_EQ(names.size(), 6U);
  EXPECT_EQ(qat::prepared_layers(model).size(), 8U);
  for (const auto& parameter : model.named_parameters()) {
    EXPECT_EQ(parameter.value().requires_grad(), is_adapter(parameter.key())) << parameter.key();
  }
  EXPECT_THROW(qat::convert_to_plain(model), c10::Error);
  nn::Transformer other(tiny(), at::TensorOptions());
  EXPECT_THROW(add_adapters(other, kSpec, {"q_proj_of_nobody"}), c10::Error);
}

TEST(Adapters, InitialValuesAreAFunctionOfNameAndPosition) {
  const at::Tensor whole = at::zeros({6, 64});
  initialize_adapter(7, "layers.0.mlp.down_proj.lora_A", whole, 0);
  const at::Tensor part = at::zeros({2, 64});
  initialize_adapter(7, "layers.0.mlp.down_proj.lora_A", part, 3);
  expect_bitwise_equal(part, whole.slice(0, 3, 5).contiguous());
  EXPECT_NEAR(whole.std().item<double>(), 1.0 / std::sqrt(3.0 * 64), 0.01);
  initialize_adapter(7, "layers.0.mlp.down_proj.lora_B", part, 3);
  EXPECT_EQ(part.abs().max().item<double>(), 0.0);
}

// The parts of a fused projection, put together again from the file, are the merged weight.
TEST(Adapters, ThePeftFileHoldsWhatMergingAdds) {
  const nn::TransformerConfig config = tiny();
  const std::string linear = "layers.1.self_attn.qkv_proj";
  const at::Tensor weight = at::randn({128, 64});
  const std::map<std::string, at::Tensor> parameters = {{linear + ".weight", weight},
                                                        {linear + ".lora_A", at::randn({4, 64})},
                                                        {linear + ".lora_B", at::randn({128, 4})}};
  const FullParameter full = [&](const std::string& name) { return parameters.at(name); };
  const auto directory = std::filesystem::path(::testing::TempDir()) / "peft";
  std::filesystem::remove_all(directory);
  write_peft_adapter(directory, config, kSpec, "base", {linear}, full);
  const auto file = checkpoint::SafetensorsFile::open(directory / "adapter_model.safetensors");
  EXPECT_EQ(file.names().size(), 6U);
  at::Tensor rebuilt = weight.clone();
  for (const auto& piece :
       checkpoint::huggingface_pieces(config, {linear + ".weight", {128, 64}})) {
    const std::string stem = "base_model.model." + piece.name.substr(0, piece.name.size() - 7);
    rebuilt.slice(0, piece.row_begin, piece.row_end)
        .add_(at::mm(file.tensor(stem + ".lora_B.weight"), file.tensor(stem + ".lora_A.weight")),
              kSpec.scaling());
  }
  testing::expect_close(merged_parameters(full, {linear}, kSpec, at::kFloat)(linear + ".weight"),
                        rebuilt, 1e-5);
  const auto json = nlohmann::json::parse(checkpoint::read_file(directory / "adapter_config.json"));
  EXPECT_EQ(json.at("r"), 4);
  EXPECT_EQ(json.at("lora_alpha"), 8.0);
  EXPECT_EQ(json.at("target_modules").size(), 3U);
}

}  // namespace
}  // namespace narrowgauge::lora
