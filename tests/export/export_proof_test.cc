#include <ATen/ops/bitwise_xor.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "checkpoint/durable_file.h"
#include "export/compressed_tensors_layout.h"
#include "export/gguf_file.h"
#include "export/gguf_model.h"
#include "export/quantized_directory.h"
#include "export/torchao_layout.h"
#include "quantization/scheme.h"

namespace narrowgauge::exports {
namespace {

namespace fs = std::filesystem;
using quantization::QuantizedTensor;

nn::TransformerConfig small_shape(const std::string& architecture) {
  nn::TransformerConfig shape;
  shape.architecture = architecture;
  shape.vocab_size = 70;
  shape.dim = 64;
  shape.num_layers = 2;
  shape.num_heads = 4;
  shape.num_kv_heads = 2;
  shape.head_dim = 16;
  shape.ffn_dim = 96;
  shape.attention_bias = architecture == "qwen2";
  shape.qk_norm = architecture == "qwen3";
  return shape;
}

// A model of random weights whose projections are quantized by `scheme`, if it is not empty.
ExportModel small_model(const std::string& scheme, const std::string& architecture = "llama") {
  ExportModel model;
  model.config.transformer = small_shape(architecture);
  auto tensors = std::make_shared<std::map<std::string, at::Tensor>>();
  for (const ModelTensor& tensor : model_tensors(model.config.transformer)) {
    (*tensors)[tensor.name] = at::randn(tensor.sizes).to(model.dtype);
    if (!scheme.empty() && tensor.sizes.size() == 2 && tensor.module != "lm_head" &&
        tensor.module != "model.embed_tokens") {
      model.schemes[tensor.module] = quantization::scheme_by_name(scheme);
    }
  }
  model.plain = [tensors](const std::string& name) { return tensors->at(name); };
  model.quantized = [tensors, schemes = model.schemes](const std::string& module) {
    return quantization::quantize(tensors->at(module + ".weight"), schemes.at(module).weight);
  };
  return model;
}

class ExportProof : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  const fs::path folder_ =
      fs::path(testing::TempDir()) / ("export_proof" + std::to_string(::getpid()));
};

// Holds everything as torchao does, but for one code.
class LossyLayout : public WeightLayout {
 public:
  std::string name() const override { return "lossy"; }
  std::optional<std::string> refusal(const std::string& module,
                                     const quantization::Scheme& scheme) const override {
    return exact_->refusal(module, scheme);
  }
  std::vector<NamedTensor> pack(const std::string& module, const quantization::Scheme& scheme,
                                const QuantizedTensor& weight,
                                at::ScalarType dtype) const override {
    auto tensors = exact_->pack(module, scheme, weight, dtype);
    if (module == "model.layers.1.mlp.down_proj" && !weight.codes.is_meta()) {
      tensors[0].tensor = tensors[0].tensor.clone();
      tensors[0].tensor[3][5].bitwise_xor_(1);
    }
    return tensors;
  }
  QuantizedTensor unpack(const std::string& module, const quantization::Scheme& scheme,
                         const TensorReader& read) const override {
    return exact_->unpack(module, scheme, read);
  }
  nlohmann::json quantization_config(const ExportModel& model) const override {
    return exact_->quantization_config(model);
  }

 private:
  std::unique_ptr<WeightLayout> exact_ = torchao_layout();
};

TEST_F(ExportProof, CountsWhatItProved) {
  const ExportModel model = small_model("8da4w");
  for (const int64_t shard_bytes : {int64_t{1} << 30, int64_t{4096}}) {
    const ExportReport report = write_quantized_directory(folder_ / "out", model, *torchao_layout(),
                                                          {}, nullptr, shard_bytes);
    const int64_t codes = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 96 * 64);
    EXPECT_EQ(report.quantized_weights, 14);
    EXPECT_EQ(report.codes, codes);
    EXPECT_EQ(report.scales, codes / 32);
    EXPECT_EQ(report.plain_tensors, 2 * 2 + 3);
    EXPECT_GT(report.bytes, static_cast<uint64_t>(codes));
    EXPECT_FALSE(fs::exists(folder_ / "out.tmp"));
  }
  EXPECT_TRUE(fs::exists(folder_ / "out" / "model.safetensors.index.json"));
  const auto config = checkpoint::read_file(folder_ / "out" / "config.json");
  EXPECT_NE(config.find("Int8DynamicActivationIntxWeightConfig"), std::string::npos);
  EXPECT_NE(config.find("\"lm_head\""), std::string::npos);
}

TEST_F(ExportProof, AWrongCodeKeepsTheDirectoryFromAppearing) {
  const ExportModel model = small_model("8da4w");
  try {
    write_quantized_directory(folder_ / "out", model, LossyLayout(), {});
    FAIL() << "expected an error";
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    EXPECT_NE(text.find("model.layers.1.mlp.down_proj.weight codes: element 293"),
              std::string::npos)
        << text;
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(ExportProof, WhatTheFormatCannotHoldIsRefusedBeforeAnythingIsWritten) {
  EXPECT_THROW(write_quantized_directory(folder_ / "out", small_model("gguf-q4_0"),
                                         *compressed_tensors_layout(), {}),
               c10::Error);
  EXPECT_THROW(write_quantized_directory(folder_ / "out", small_model(""), *torchao_layout(), {}),
               c10::Error);
  EXPECT_THROW(write_gguf(folder_ / "m.gguf", small_model("8da4w"), nullptr, GgmlType::kF16),
               c10::Error);
  ExportModel stranger = small_model("8da4w");
  stranger.schemes["model.layers.7.mlp.up_proj"] = quantization::scheme_by_name("8da4w");
  EXPECT_THROW(write_quantized_directory(folder_ / "out", stranger, *torchao_layout(), {}),
               c10::Error);
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(ExportProof, GgufHoldsEveryArchitecture) {
  for (const char* architecture : {"llama", "mistral", "qwen2", "qwen3"}) {
    for (const char* scheme : {"", "gguf-q4_0", "gguf-q8_0"}) {
      const ExportModel model = small_model(scheme, architecture);
      const fs::path path = folder_ / "model.gguf";
      const ExportReport report = write_gguf(path, model, nullptr, GgmlType::kBf16);
      EXPECT_EQ(report.quantized_weights, *scheme == '\0' ? 0 : 14);
      EXPECT_EQ(report.bytes, fs::file_size(path));
      const GgufFile file = GgufFile::open(path);
      EXPECT_EQ(file.info("blk.0.attn_norm.weight").type, GgmlType::kF32);
      EXPECT_FALSE(fs::exists(path.string() + ".unproven"));
    }
  }
}

// Row 2i of a head is the first half's row i, row 2i + 1 the second half's.
TEST_F(ExportProof, LlamasQueriesAreInterleaved) {
  const ExportModel model = small_model("");
  write_gguf(folder_ / "model.gguf", model, nullptr, GgmlType::kF32);
  const GgufFile file = GgufFile::open(folder_ / "model.gguf");
  const at::Tensor ours = model.plain("model.layers.0.self_attn.k_proj.weight").to(at::kFloat);
  const at::Tensor theirs = file.tensor("blk.0.attn_k.weight");
  for (const auto& [row, from] : {std::pair{0, 0}, {1, 8}, {2, 1}, {15, 15}, {16, 16}, {17, 24}}) {
    EXPECT_TRUE(at::equal(theirs[row], ours[from])) << row;
  }
  EXPECT_TRUE(at::equal(file.tensor("blk.0.attn_v.weight"),
                        model.plain("model.layers.0.self_attn.v_proj.weight").to(at::kFloat)));
}

TEST_F(ExportProof, ValuesBeyondF16AreRefused) {
  ExportModel model = small_model("");
  const auto plain = model.plain;
  model.plain = [plain](const std::string& name) { return plain(name).mul(1e6); };
  EXPECT_THROW(write_gguf(folder_ / "m.gguf", model, nullptr, GgmlType::kF16), c10::Error);
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace narrowgauge::exports
