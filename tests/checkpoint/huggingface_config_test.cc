#include "checkpoint/huggingface_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "checkpoint/huggingface_names.h"

namespace narrowgauge::checkpoint {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

json llama() {
  return {{"model_type", "llama"},
          {"vocab_size", 128256},
          {"hidden_size", 4096},
          {"intermediate_size", 14336},
          {"num_hidden_layers", 32},
          {"num_attention_heads", 32},
          {"num_key_value_heads", 8},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 500000.0},
          {"max_position_embeddings", 131072},
          {"torch_dtype", "bfloat16"},
          {"bos_token_id", 128000},
          {"eos_token_id", {128001, 128009}}};
}

HuggingFaceConfig parse(const json& config) {
  return parse_huggingface_config(config.dump(), "config.json");
}

// The error of parsing llama() with `changes` applied (null in a patch removes the key).
std::string error(const json& changes) {
  json config = llama();
  config.merge_patch(changes);
  try {
    parse(config);
  } catch (const std::runtime_error& failure) {
    EXPECT_THAT(failure.what(), HasSubstr("config.json"));
    return failure.what();
  }
  return "";
}

TEST(HuggingFaceConfig, ReadsLlama31AsItsAuthorsWroteIt) {
  json config = llama();
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  const HuggingFaceConfig parsed = parse(config);
  const nn::TransformerConfig& transformer = parsed.transformer;
  EXPECT_EQ(transformer.head_dim, 128);
  EXPECT_EQ(transformer.num_kv_heads, 8);
  EXPECT_EQ(transformer.rope_theta, 500000.0);
  EXPECT_EQ(transformer.rope_scaling, "llama3");
  EXPECT_EQ(transformer.rope_factor, 8.0);
  EXPECT_EQ(transformer.rope_original_max_seq_len, 8192);
  EXPECT_FALSE(transformer.attention_bias);
  EXPECT_EQ(parsed.dtype, "bfloat16");
  EXPECT_EQ(parsed.bos_token_id, 128000);
  EXPECT_EQ(parsed.eos_token_ids, (std::vector<int64_t>{128001, 128009}));
}

TEST(HuggingFaceConfig, BothSpellingsOfRopeAgree) {
  json old_spelling = llama();
  old_spelling["rope_scaling"] = {{"type", "linear"}, {"factor", 4}};
  json new_spelling = llama();
  new_spelling.erase("rope_theta");
  new_spelling["rope_parameters"] = {
      {"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 500000.0}};
  for (const json& config : {old_spelling, new_spelling}) {
    const auto transformer = parse(config).transformer;
    EXPECT_EQ(transformer.rope_scaling, "linear");
    EXPECT_EQ(transformer.rope_factor, 4.0);
    EXPECT_EQ(transformer.rope_theta, 500000.0);
  }
  EXPECT_EQ(parse(llama()).transformer.rope_scaling, "none");
}

TEST(HuggingFaceConfig, EachArchitectureHasItsOwnDefaultsAndBiases) {
  json config = llama();
  config["attention_bias"] = true;
  EXPECT_TRUE(parse(config).transformer.attention_output_bias);
  config["model_type"] = "qwen2";  // which has no such key
  EXPECT_TRUE(parse(config).transformer.attention_bias);
  EXPECT_FALSE(parse(config).transformer.attention_output_bias);
  EXPECT_EQ(parse(config).transformer.head_dim, 128);
  config["model_type"] = "qwen3";
  config["hidden_size"] = 1024;  // Qwen3-0.6B: heads are wider than hidden_size / heads
  EXPECT_TRUE(parse(config).transformer.qk_norm);
  EXPECT_EQ(parse(config).transformer.head_dim, 128);
  config["model_type"] = "mistral";
  config["sliding_window"] = nullptr;
  EXPECT_FALSE(parse(config).transformer.attention_bias);
  config["sliding_window"] = 131072;  // never cuts
  EXPECT_EQ(parse(config).transformer.architecture, "mistral");
}

TEST(HuggingFaceConfig, RefusesByNameWhatWouldComputeSomethingElse) {
  EXPECT_THAT(error({{"model_type", "gemma2"}}),
              HasSubstr("'gemma2' is not supported; supported: llama, mistral, qwen2, qwen3"));
  EXPECT_THAT(error({{"hidden_act", "gelu"}}), HasSubstr("'gelu'"));
  EXPECT_THAT(error({{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}}), HasSubstr("'yarn'"));
  EXPECT_THAT(error({{"partial_rotary_factor", 0.5}}), HasSubstr("partial_rotary_factor"));
  EXPECT_THAT(error({{"quantization_config", {{"quant_method", "gptq"}}}}), HasSubstr("quantized"));
  EXPECT_THAT(error({{"model_type", "mistral"}}), HasSubstr("window of 4096"));  // its default
  EXPECT_THAT(error({{"model_type", "mistral"}, {"sliding_window", 1024}}),
              HasSubstr("window of 1024"));
  EXPECT_THAT(error({{"model_type", "qwen2"}, {"use_sliding_window", true}}),
              HasSubstr("window of 4096"));
  EXPECT_EQ(error({{"model_type", "qwen2"}, {"sliding_window", 1024}}), "");  // not in use
  EXPECT_EQ(error({{"model_type", "qwen2"},                                   // on no layer
                   {"use_sliding_window", true},
                   {"max_window_layers", 32}}),
            "");
}

TEST(HuggingFaceConfig, NamesMissingAndWrongKeys) {
  for (const char* key : {"model_type", "vocab_size", "hidden_size", "intermediate_size",
                          "num_hidden_layers", "num_attention_heads"}) {
    EXPECT_THAT(error({{key, nullptr}}), HasSubstr("missing key '" + std::string(key) + "'"));
  }
  EXPECT_THAT(error({{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}}),
              HasSubstr("rope_scaling: missing key 'low_freq_factor'"));
  EXPECT_THAT(error({{"model_type", "qwen2"}, {"num_key_value_heads", nullptr}}),
              HasSubstr("num_key_value_heads"));
  EXPECT_THAT(error({{"hidden_size", "4096"}}), HasSubstr("an integer"));
  EXPECT_THAT(error({{"hidden_size", 4096.5}}), HasSubstr("4096.5"));
  EXPECT_THAT(error({{"hidden_size", 0}}), HasSubstr("got 0"));
  EXPECT_THAT(error({{"vocab_size", -5}}), HasSubstr("got -5"));
  EXPECT_THAT(error({{"num_hidden_layers", 18446744073709551615U}}), HasSubstr("63 bits"));
  EXPECT_THAT(error({{"num_key_value_heads", 5}}), HasSubstr("divide num_attention_heads 32"));
  EXPECT_THAT(error({{"num_attention_heads", 24}, {"num_key_value_heads", 24}}),
              HasSubstr("divide hidden_size 4096"));
  EXPECT_THAT(error({{"head_dim", 7}}), HasSubstr("even head_dim"));
  EXPECT_THAT(error({{"num_hidden_layers", 1000000}}), HasSubstr("to 4096, got 1000000"));
  EXPECT_THAT(error({{"head_dim", 8388608}}), HasSubstr("got 32 * 8388608"));
  EXPECT_THAT(error({{"eos_token_id", "</s>"}}), HasSubstr("eos_token_id"));
  EXPECT_THAT(error({{"rope_theta", -1.0}}), HasSubstr("rope_theta"));
  EXPECT_THROW(parse_huggingface_config("", "x"), std::runtime_error);
  EXPECT_THROW(parse_huggingface_config("[1]", "x"), std::runtime_error);
  EXPECT_THROW(parse_huggingface_config(R"({"model_type":"llama","model_type":"qwen2"})", "x"),
               std::runtime_error);
}

TEST(HuggingFaceConfig, WhatIsWrittenReadsBackEqual) {
  for (const char* architecture : {"llama", "mistral", "qwen2", "qwen3"}) {
    json config = llama();
    config["model_type"] = architecture;
    config["sliding_window"] = nullptr;
    config["tie_word_embeddings"] = true;
    config["rms_norm_eps"] = 1e-6;
    config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 3.5}};
    const HuggingFaceConfig first = parse(config);
    const std::string text = huggingface_config_json(first);
    EXPECT_EQ(huggingface_config_json(parse_huggingface_config(text, "again")), text);
    EXPECT_EQ(json::parse(text)["rope_scaling"]["factor"], 3.5);
  }
  HuggingFaceConfig config = parse(llama());
  EXPECT_EQ(json::parse(huggingface_generation_config_json(config))["eos_token_id"],
            json({128001, 128009}));
  config.transformer.qk_norm = true;  // llama has none
  EXPECT_THROW(huggingface_config_json(config), std::invalid_argument);
}

int64_t num_parameters(const nn::TransformerConfig& config) {
  int64_t total = 0;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    total += std::accumulate(spec.sizes.begin(), spec.sizes.end(), int64_t{1}, std::multiplies<>());
  }
  return total;
}

TEST(HuggingFaceNames, Llama31Has8030261248Parameters) {
  EXPECT_EQ(num_parameters(parse(llama()).transformer), 8030261248);
}

TEST(HuggingFaceNames, PiecesTileEveryParameterAndNamesAreUnique) {
  nn::TransformerConfig config = parse(llama()).transformer;
  config.attention_bias = config.mlp_bias = config.attention_output_bias = config.qk_norm = true;
  std::set<std::string> names;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    int64_t row = 0;
    for (const HuggingFacePiece& piece : huggingface_pieces(config, spec)) {
      EXPECT_EQ(piece.row_begin, row) << spec.name;
      EXPECT_EQ(piece.row_end - piece.row_begin, piece.sizes[0]) << spec.name;
      EXPECT_TRUE(names.insert(piece.name).second) << piece.name;
      row = piece.row_end;
    }
    EXPECT_EQ(row, spec.sizes[0]) << spec.name;
  }
  EXPECT_EQ(names.count("model.layers.31.self_attn.k_proj.bias"), 1U);
  EXPECT_EQ(names.count("model.layers.0.self_attn.q_norm.weight"), 1U);
  EXPECT_EQ(names.count("lm_head.weight"), 1U);
}

TEST(HuggingFaceNames, FusedRowsAreQThenKThenV) {
  const nn::TransformerConfig config = parse(llama()).transformer;
  const auto pieces =
      huggingface_pieces(config, {"layers.7.self_attn.qkv_proj.weight", {4096 + 2 * 1024, 4096}});
  ASSERT_EQ(pieces.size(), 3U);
  EXPECT_EQ(pieces[1].name, "model.layers.7.self_attn.k_proj.weight");
  EXPECT_EQ(pieces[1].row_begin, 4096);
  EXPECT_EQ(pieces[2].row_begin, 5120);
  EXPECT_EQ(pieces[2].sizes, (std::vector<int64_t>{1024, 4096}));
  EXPECT_THROW(huggingface_pieces(config, {"layers.7.self_attn.qkv_proj.weight", {4096, 4096}}),
               std::invalid_argument);
}

}  // namespace
}  // namespace narrowgauge::checkpoint
