#include "plan/model_size.h"

#include <gtest/gtest.h>

namespace narrowgauge::plan {
namespace {

nn::TransformerConfig llama3_8b() {
  nn::TransformerConfig config;
  config.dim = 4096;
  config.num_layers = 32;
  config.num_heads = 32;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  config.ffn_dim = 14336;
  config.vocab_size = 128256;
  return config;
}

TEST(ModelSize, CountsLlama3) {
  EXPECT_EQ(model_numel(llama3_8b()), 8030261248);
  // torchtitan's count for 8B at 8192, 57.9 GFLOP a token, takes attention without the causal half.
  const ForwardFlops flops = forward_flops(llama3_8b(), 8192);
  EXPECT_NEAR(3 * (flops.block_linears + flops.head + 2 * flops.attention), 57.9e9, 0.05e9);
  EXPECT_EQ(flops.other_linears, 0);
}

TEST(ModelSize, CountsBiasesNormsAndTies) {
  nn::TransformerConfig config;
  config.dim = 8;
  config.num_layers = 1;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 4;
  config.ffn_dim = 12;
  config.vocab_size = 10;
  const int64_t plain = model_numel(config);
  EXPECT_EQ(plain, 2 * 80 + 3 * 8 + 8 * 16 + 8 * 8 + 8 * 24 + 12 * 8);
  config.attention_bias = true;
  EXPECT_EQ(model_numel(config), plain + 16);
  config.qk_norm = true;
  EXPECT_EQ(model_numel(config), plain + 16 + 8);
  config.tie_word_embeddings = true;
  EXPECT_EQ(model_numel(config), plain + 16 + 8 - 80);
}

TEST(ModelSize, ShardsArePadded) {
  const std::vector<ParameterSize> parameters = {{"a", 10, 3}, {"b", 5}, {"c", 1, 7}};
  EXPECT_EQ(total_numel(parameters), 30 + 5 + 7);
  EXPECT_EQ(sharded_numel(parameters, 4), 3 * 3 + 2 + 7);
  EXPECT_EQ(sharded_numel(parameters, 1000), 3 + 1 + 7);
}

TEST(ModelSize, Float8NeedsMultiplesOf16) {
  EXPECT_EQ(float8_refusal(4096, 14336), "");
  EXPECT_EQ(float8_refusal(4097, 14336), "4097 is no multiple of 16");
  EXPECT_EQ(float8_refusal(16, 24), "24 is no multiple of 16");
  nn::TransformerConfig odd = llama3_8b();
  odd.ffn_dim = 14344;  // gate_up has 28688 = 16 x 1793 rows, down_proj takes 14344
  EXPECT_GT(forward_flops(odd, 8192).other_linears, 0);
}

}  // namespace
}  // namespace narrowgauge::plan
