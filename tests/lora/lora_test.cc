#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "checkpoint/durable_file.h"
#include "checkpoint/huggingface_names.h"
#include "checkpoint/safetensors.h"
#include "lora/adapters.h"
#include "lora/lora_linear.h"
#include "nn/activation_checkpoint.h"
#include "nn/dropout.h"
#include "nn/initialize.h"
#include "nn/normal_init.h"
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

// A linear with dropout at rows of a batch, and at none.
constexpr double kDropout = 0.4;
const LoRASpec kDropoutSpec{.rank = 4, .alpha = 8.0, .dropout = kDropout};

AdapterDropout dropout_at(const std::shared_ptr<BatchPosition>& position) {
  return {kDropout, 7, "layers.0.mlp.down_proj", position};
}

TEST(LoRALinear, DropoutIsOfTheAdaptersInputAlone) {
  const auto linear = make_linear(at::kFloat);
  LoRALinear adapted(*linear, kDropoutSpec);
  fill(adapted, true);
  const at::Tensor x = at::randn({2, 5, 64});
  const at::Tensor plain = adapted(x).detach();
  const auto position = std::make_shared<BatchPosition>();
  adapted.dropout = dropout_at(position);
  expect_bitwise_equal(adapted(x).detach(), plain);  // not in training
  *position = {.is_training = true, .step = 3, .first_row = 20};
  const auto mask = adapted.dropout.mask(64);
  ASSERT_TRUE(mask.has_value());
  EXPECT_EQ(mask->first_element, 20 * 64);
  const at::Tensor dropped = nn::dropout(x, *mask);
  EXPECT_GT(dropped.eq(0.0).sum().item<int64_t>(), 100);
  const at::Tensor expected =
      at::linear(x, linear->weight)
          .add(at::linear(at::linear(dropped, adapted.lora_A), adapted.lora_B),
               kDropoutSpec.scaling());
  expect_bitwise_equal(adapted(x).detach(), expected.detach());
  expect_bitwise_equal(adapted(x).detach(), adapted(x).detach());
  position->step = 4;
  EXPECT_FALSE(adapted(x).equal(expected));
  EXPECT_THROW(LoRALinear(*linear, {.rank = 4, .alpha = 8.0, .dropout = 1.0}), c10::Error);
}

TEST(LoRALinear, DropoutDoesNotDependOnHowABatchIsShared) {
  LoRALinear adapted(*make_linear(at::kFloat), kDropoutSpec);
  fill(adapted, true);
  const auto position = std::make_shared<BatchPosition>();
  adapted.dropout = dropout_at(position);
  const at::Tensor x = at::randn({8, 64});
  *position = {.is_training = true, .step = 1, .first_row = 0};
  const at::Tensor whole = adapted(x).detach();
  position->first_row = 5;
  testing::expect_close(adapted(x.slice(0, 5)).detach(), whole.slice(0, 5), 1e-5);
}

// While fake quantization is off the layer is a LoRALinear; while it is on, what dropout adds to
// the output and to the gradients is the same.
TEST(LoRAFakeQuantizedLinear, DropoutAddsWhatItDoesToALoRALinear) {
  const auto linear = make_linear(at::kFloat);
  LoRALinear plain(*linear, kDropoutSpec);
  fill(plain, true);
  const qat::FakeQuantizedLinear prepared(*linear, quantization::scheme_by_name("8da4w"));
  LoRAFakeQuantizedLinear adapted(prepared, kDropoutSpec);
  fill(adapted, false);
  {
    const at::NoGradGuard no_grad;
    adapted.lora_A.copy_(plain.lora_A);
    adapted.lora_B.copy_(plain.lora_B);
  }
  const at::Tensor x = at::randn({10, 64});
  const at::Tensor grad = at::randn({10, 48});
  const auto position = std::make_shared<BatchPosition>();
  for (const bool enabled : {false, true}) {
    adapted.set_fake_quant_enabled(enabled);
    const auto run = [&](auto& layer, bool drops) {
      *position = {.is_training = drops, .step = 2, .first_row = 3};
      layer.dropout = dropout_at(position);
      layer.lora_A.mutable_grad() = at::Tensor();
      layer.lora_B.mutable_grad() = at::Tensor();
      const at::Tensor input = x.detach().clone().requires_grad_();
      const at::Tensor y = layer(input);
      y.backward(grad);
      return std::vector<at::Tensor>{y.detach(), input.grad(), layer.lora_A.grad(),
                                     layer.lora_B.grad()};
    };
    const auto with = run(adapted, true);
    const auto without = run(adapted, false);
    const auto plain_with = run(plain, true);
    const auto plain_without = run(plain, false);
    for (size_t i = 0; i < with.size(); ++i) {
      const double scale = plain_with[i].abs().max().item<double>();
      const at::Tensor added = with[i].sub(without[i]);
      EXPECT_LT(added.sub(plain_with[i]).add(plain_without[i]).abs().max().item<double>(),
                1e-5 * scale);
      EXPECT_GT(added.abs().max().item<double>(), 1e-2 * scale);
    }
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
  const Adapted adapted = add_adapters(model, kSpec, {{"self_attn.*", "down_proj"}});
  EXPECT_EQ(adapted.linears.size(), 6U);
  EXPECT_TRUE(adapted.modules_to_save.empty());
  EXPECT_EQ(qat::prepared_layers(model).size(), 8U);
  for (const auto& parameter : model.named_parameters()) {
    EXPECT_EQ(parameter.value().requires_grad(), is_adapter(parameter.key())) << parameter.key();
  }
  EXPECT_THROW(qat::convert_to_plain(model), c10::Error);
  nn::Transformer other(tiny(), at::TensorOptions());
  EXPECT_THROW(add_adapters(other, kSpec, {{"q_proj_of_nobody"}}), c10::Error);
}

TEST(Adapters, ModulesToSaveTrainInFullAndHaveNoAdapter) {
  nn::Transformer model(tiny(), at::TensorOptions());
  qat::prepare(model, {.scheme = quantization::scheme_by_name("8da4w"), .rules = {}});
  const AdaptedNames names{{"*_proj"}, {"lm_head", "embed_tokens", "*norm", "layers.0.*.o_proj"}};
  const Adapted adapted = add_adapters(model, kSpec, names);
  EXPECT_EQ(adapted.linears.size(), 7U);
  const std::set<std::string> saved(adapted.modules_to_save.begin(), adapted.modules_to_save.end());
  const std::set<std::string> expected = {"embed_tokens",
                                          "lm_head",
                                          "norm",
                                          "layers.0.self_attn.o_proj",
                                          "layers.0.input_layernorm",
                                          "layers.0.post_attention_layernorm",
                                          "layers.1.input_layernorm",
                                          "layers.1.post_attention_layernorm"};
  EXPECT_EQ(saved, expected);
  for (const auto& parameter : model.named_parameters()) {
    const std::string owner = parameter.key().substr(0, parameter.key().rfind('.'));
    EXPECT_EQ(parameter.value().requires_grad(),
              is_adapter(parameter.key()) || expected.contains(owner))
        << parameter.key();
  }
  EXPECT_EQ(trained_parameters(tiny(), adapted).size(), 2 * 7 + expected.size());
}

TEST(Adapters, ModulesToSaveThatAreNotThereAreRefused) {
  const auto add = [](bool tied, const AdaptedNames& names) {
    nn::TransformerConfig config = tiny();
    config.tie_word_embeddings = tied;
    nn::Transformer model(config, at::TensorOptions());
    add_adapters(model, kSpec, names);
  };
  EXPECT_NO_THROW(add(false, {{"*_proj"}, {"lm_head"}}));
  EXPECT_THROW(add(true, {{"*_proj"}, {"lm_head"}}), c10::Error);  // a tied one is no layer
  EXPECT_THROW(add(false, {{"*_proj"}, {"self_attn"}}), c10::Error);
  EXPECT_THROW(add(false, {{"down_proj"}, {"down_proj"}}), c10::Error);
}

// A recomputed block draws its masks again, from the step and rows that its forward had.
TEST(Adapters, DropoutIsTheSameWhereForwardIsRecomputed) {
  const at::Tensor tokens = at::randint(0, 12, {2, 6}, at::kLong);
  const at::Tensor targets = at::randint(0, 12, {2, 6}, at::kLong);
  const auto gradients = [&](nn::CheckpointMode mode, double dropout) {
    nn::Transformer model(tiny(), at::TensorOptions());
    add_adapters(model, {.rank = 4, .alpha = 8.0, .dropout = dropout}, {{"*_proj"}});
    {
      const at::NoGradGuard no_grad;
      for (const auto& parameter : model.named_parameters()) {
        if (is_adapter(parameter.key())) {
          nn::fill_normal(parameter.value(), 3, parameter.key(), 0, 0.0, 0.1);
        } else {
          nn::initialize_parameter(tiny(), 3, parameter.key(), parameter.value(), 0);
        }
      }
    }
    nn::apply_activation_checkpoint(model, {mode});
    const auto position = set_dropout(model, 5);
    std::vector<at::Tensor> results;
    for (int64_t step = 1; step <= 2; ++step) {
      *position = {.is_training = true, .step = step, .first_row = 12};
      const at::Tensor loss = model.loss_sum(tokens, targets);
      loss.backward();
      results.push_back(loss.detach());
    }
    for (const auto& parameter : model.parameters()) {
      if (parameter.requires_grad()) {
        results.push_back(parameter.grad());
      }
    }
    position->is_training = false;
    results.push_back(model(tokens).detach());
    return results;
  };
  const auto kept = gradients(nn::CheckpointMode::kNone, 0.3);
  for (const auto mode : {nn::CheckpointMode::kFull, nn::CheckpointMode::kSelective}) {
    const auto recomputed = gradients(mode, 0.3);
    ASSERT_EQ(recomputed.size(), kept.size());
    for (size_t i = 0; i < kept.size(); ++i) {
      expect_bitwise_equal(recomputed[i], kept[i]);
    }
  }
  const auto plain = gradients(nn::CheckpointMode::kNone, 0.0);
  EXPECT_FALSE(plain[0].equal(kept[0]));
  EXPECT_FALSE(kept[0].equal(kept[1]));
  expect_bitwise_equal(plain[1], plain[0]);
  expect_bitwise_equal(plain.back(), kept.back());  // without training nothing is dropped
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
  write_peft_adapter(directory, config, {.rank = 4, .alpha = 8.0, .dropout = 0.1}, "base",
                     {{linear}, {}}, full);
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
  EXPECT_EQ(json.at("lora_dropout"), 0.1);
  EXPECT_EQ(json.at("target_modules").size(), 3U);
  EXPECT_TRUE(json.at("modules_to_save").is_null());
}

// peft saves a module that trains in full under the name that it has in the model.
TEST(Adapters, ThePeftFileHoldsModulesToSave) {
  for (const bool tied : {false, true}) {
    nn::TransformerConfig config = tiny();
    config.tie_word_embeddings = tied;
    config.attention_bias = true;
    std::map<std::string, at::Tensor> parameters = {
        {"layers.1.mlp.down_proj.lora_A", at::randn({4, 96})},
        {"layers.1.mlp.down_proj.lora_B", at::randn({64, 4})}};
    for (const checkpoint::ParameterSpec& parameter : checkpoint::parameter_specs(config)) {
      parameters[parameter.name] = at::randn(parameter.sizes);
    }
    const std::string attention = "layers.0.self_attn.";
    const Adapted adapted{{"layers.1.mlp.down_proj"},
                          {"embed_tokens", "norm", attention + "qkv_proj"}};
    std::vector<std::string> asked;
    const FullParameter full = [&](const std::string& name) {
      asked.push_back(name);
      return parameters.at(name);
    };
    const auto directory = std::filesystem::path(::testing::TempDir()) / "peft_saved";
    std::filesystem::remove_all(directory);
    write_peft_adapter(directory, config, kSpec, "base", adapted, full);
    EXPECT_EQ(asked, trained_parameters(config, adapted));
    const auto file = checkpoint::SafetensorsFile::open(directory / "adapter_model.safetensors");
    EXPECT_EQ(file.names().size(), 2U + 2U + 6U + (tied ? 1U : 0U));
    const auto expect_saved = [&](const std::string& name, const at::Tensor& value) {
      expect_bitwise_equal(file.tensor("base_model.model." + name), value.contiguous());
    };
    expect_saved("model.embed_tokens.weight", parameters.at("embed_tokens.weight"));
    expect_saved("model.norm.weight", parameters.at("norm.weight"));
    expect_saved("model." + attention + "q_proj.weight",
                 parameters.at(attention + "qkv_proj.weight").slice(0, 0, 64));
    expect_saved("model." + attention + "v_proj.bias",
                 parameters.at(attention + "qkv_proj.bias").slice(0, 96, 128));
    const auto json =
        nlohmann::json::parse(checkpoint::read_file(directory / "adapter_config.json"));
    std::set<std::string> modules = {"model.embed_tokens", "model.norm"};
    for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
      modules.insert("model." + attention + part);
    }
    if (tied) {
      expect_saved("lm_head.weight", parameters.at("embed_tokens.weight"));
      modules.insert("lm_head");
    }
    EXPECT_EQ(json.at("modules_to_save").get<std::set<std::string>>(), modules);
  }
}

}  // namespace
}  // namespace narrowgauge::lora
