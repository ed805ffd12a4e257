#include "float8/config.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace narrowgauge::float8 {
namespace {

std::string message(const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

// input, weight, grad_output; then those of the second product where they differ.
TEST(Float8LinearConfig, RecipesAreTorchaos) {
  const auto config = [](const char* name) { return Float8LinearConfig::from_recipe_name(name); };
  const auto tensorwise = config("tensorwise");
  EXPECT_EQ(describe(tensorwise.cast_config_input), "e4m3 tensorwise dynamic");
  EXPECT_EQ(describe(tensorwise.cast_config_weight_for_grad_input), "e4m3 tensorwise dynamic");
  EXPECT_EQ(describe(tensorwise.cast_config_grad_output), "e5m2 tensorwise dynamic");
  const auto rowwise = config("rowwise");
  for (const CastConfig* cast : rowwise.casts()) {
    EXPECT_EQ(describe(*cast), "e4m3 rowwise power_of_2 dynamic");
  }
  const auto gw_hp = config("rowwise_with_gw_hp");
  EXPECT_EQ(describe(gw_hp.cast_config_weight), "e4m3 rowwise power_of_2 dynamic");
  EXPECT_EQ(describe(gw_hp.cast_config_weight_for_grad_input),
            "e4m3 tensorwise power_of_2 dynamic");
  EXPECT_EQ(describe(gw_hp.cast_config_input_for_grad_weight), "disabled");
  EXPECT_EQ(describe(gw_hp.cast_config_grad_output_for_grad_weight), "disabled");
  EXPECT_EQ(describe(config("delayed").cast_config_grad_output), "e5m2 tensorwise delayed");
  EXPECT_EQ(describe(config("blockwise").cast_config_input), "e4m3 1x128 dynamic");
  EXPECT_EQ(describe(config("blockwise").cast_config_weight), "e4m3 128x128 dynamic");
  EXPECT_EQ(describe(config("mxfp8").cast_config_weight), "e4m3 1x32 rceil dynamic");
  for (const std::string_view name : recipe_names()) {
    check_config(Float8LinearConfig::from_recipe_name(name));
  }
  EXPECT_NE(message([&] {
              config("fp8");
            }).find("tensorwise, rowwise, rowwise_with_gw_hp, delayed, blockwise, mxfp8"),
            std::string::npos);
}

TEST(Float8LinearConfig, OperandsAreSetOneByOne) {
  auto config = Float8LinearConfig::from_recipe_name("tensorwise");
  override_cast(config, "grad_output=e4m3 delayed");
  EXPECT_EQ(describe(config.cast_config_grad_output), "e4m3 tensorwise delayed");
  EXPECT_EQ(describe(config.cast_config_grad_output_for_grad_weight), "e4m3 tensorwise delayed");
  check_config(config);

  config = Float8LinearConfig::from_recipe_name("tensorwise");
  override_cast(config, "input_for_output=rowwise");  // beside a weight with one scale
  EXPECT_EQ(describe(config.cast_config_input_for_grad_weight), "e4m3 tensorwise dynamic");
  check_config(config);
  override_cast(config, "input_for_grad_weight=disabled");
  override_cast(config, "grad_output_for_grad_weight=disabled");
  check_config(config);

  config = Float8LinearConfig::from_recipe_name("blockwise");
  for (const char* operand : {"input", "weight", "grad_output"}) {
    override_cast(config, std::string(operand) + "=power_of_2");
  }
  EXPECT_EQ(describe(config.cast_config_weight), "e4m3 128x128 power_of_2 dynamic");
  check_config(config);

  // describe and override_cast speak one language.
  for (const std::string_view name : recipe_names()) {
    auto recipe = Float8LinearConfig::from_recipe_name(name);
    auto other = Float8LinearConfig::from_recipe_name("tensorwise");
    override_cast(other, "weight=" + describe(recipe.cast_config_weight));
    EXPECT_EQ(other.cast_config_weight, recipe.cast_config_weight) << name;
  }
}

TEST(Float8LinearConfig, FastAccumulationIsTorchaosByDefaultAndSetByProduct) {
  for (const std::string_view name : recipe_names()) {
    auto config = Float8LinearConfig::from_recipe_name(name);
    EXPECT_TRUE(config.gemm_config_output.use_fast_accum);
    EXPECT_FALSE(config.gemm_config_grad_input.use_fast_accum);
    EXPECT_FALSE(config.gemm_config_grad_weight.use_fast_accum);
    set_fast_accum(config, {"grad_weight", "grad_input"});
    EXPECT_FALSE(config.gemm_config_output.use_fast_accum);
    EXPECT_TRUE(config.gemm_config_grad_input.use_fast_accum);
    EXPECT_TRUE(config.gemm_config_grad_weight.use_fast_accum);
    set_fast_accum(config, {});
    EXPECT_FALSE(config.gemm_config_grad_weight.use_fast_accum);
    EXPECT_THROW(set_fast_accum(config, {"forward"}), c10::Error);
  }
}

TEST(Float8LinearConfig, MistakesAreToldInASentence) {
  const auto after = [](const char* recipe, std::initializer_list<const char*> assignments) {
    return message([&] {
      auto config = Float8LinearConfig::from_recipe_name(recipe);
      for (const char* assignment : assignments) {
        override_cast(config, assignment);
      }
      check_config(config);
    });
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << "'" << text << "' does not say " << part;
  };
  EXPECT_EQ(after("tensorwise", {}), "");
  expect(after("tensorwise", {"weights=e4m3"}), "expected an operand among input, weight");
  expect(after("tensorwise", {"weight=e3m4"}), "got 'e3m4'");
  expect(after("tensorwise", {"weight"}), "expected OPERAND=WORDS");
  expect(after("tensorwise", {"input_for_output=disabled"}), "both operands of output in fp8");
  expect(after("tensorwise", {"grad_output_for_grad_weight=disabled"}), "grad_weight in fp8 or");
  expect(after("tensorwise", {"weight=1x128"}), "operands of output that are scaled alike");
  expect(after("rowwise", {"input=delayed"}), "delayed scaling with one scale");
  expect(after("tensorwise", {"input_for_output=e5m2"}), "input in one fp8 dtype");
  expect(after("mxfp8", {"weight=float"}), "e8m0");
  const auto gathered = [](const char* recipe) {
    return message([&] {
      auto config = Float8LinearConfig::from_recipe_name(recipe);
      config.enable_fsdp_float8_all_gather = true;
      check_config(config);
    });
  };
  EXPECT_EQ(gathered("tensorwise"), "");
  EXPECT_EQ(gathered("rowwise"), "");
  EXPECT_EQ(gathered("rowwise_with_gw_hp"), "");
  EXPECT_EQ(gathered("delayed"), "");
  expect(gathered("blockwise"), "tensorwise or rowwise weights with enable_fsdp_float8");
  expect(gathered("mxfp8"), "tensorwise or rowwise weights with enable_fsdp_float8");
}

}  // namespace
}  // namespace narrowgauge::float8
