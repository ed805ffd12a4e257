#include "trainer/bench_mode.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/config_reader.h"
#include "trainer/usage_error.h"

namespace narrowgauge::trainer {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

TrainConfig config_with(const std::vector<std::string>& overrides) {
  return read_config_text(
      "job: {run_dir: x}\ntokenizer: {kind: bytes}\ndata: {train: [a.txt]}\n"
      "model: {dim: 64, num_heads: 4, num_layers: 2, ffn_dim: 128}\n",
      "c.yaml", overrides);
}

TEST(BenchMode, AModeOfAnyConfigurationIsThatMode) {
  const std::vector<std::string> base = {"qat.scheme=mxfp4"};
  for (const char* mode : {"bf16", "fp32", "float8.tensorwise", "float8.rowwise", "qat.8da4w",
                           "qat.int4-weight-only", "sparsity.semi_structured"}) {
    std::vector<std::string> overrides = base;
    const std::vector<std::string> of_mode = mode_overrides(mode);
    overrides.insert(overrides.end(), of_mode.begin(), of_mode.end());
    EXPECT_EQ(configured_mode(config_with(overrides)), mode);
  }
  EXPECT_THAT(mode_overrides("configured"), IsEmpty());
  EXPECT_THAT(mode_overrides("optimizer.AdamW8bit"), Contains("optimizer.name=AdamW8bit"));
}

TEST(BenchMode, WhatHasNoNameIsConfigured) {
  EXPECT_EQ(configured_mode(config_with(
                {"float8.recipe_name=rowwise", "training.mixed_precision_param=float32"})),
            "configured");
}

TEST(BenchMode, WhatIsNoMode) {
  for (const char* mode : {"fp8", "float8", "training.steps", ""}) {
    try {
      mode_overrides(mode);
      FAIL() << mode;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr("--modes: expected some of bf16, fp32, configured"));
    }
  }
}

}  // namespace
}  // namespace narrowgauge::trainer
