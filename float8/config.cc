#include "float8/config.h"

#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <sstream>
#include <utility>

namespace narrowgauge::float8 {
namespace {

constexpr at::ScalarType kE4M3 = at::kFloat8_e4m3fn;
constexpr at::ScalarType kE5M2 = at::kFloat8_e5m2;
constexpr int64_t kMaxAmaxHistoryLen = 1 << 16;

CastConfig dynamic(at::ScalarType dtype, ScalingGranularity granularity,
                   ScaleRounding rounding = ScaleRounding::kNone) {
  return {ScalingType::kDynamic, {dtype, granularity, rounding}};
}

// Every operand with the same cast in both of its products.
Float8LinearConfig make_config(const CastConfig& input, const CastConfig& weight,
                               const CastConfig& grad_output) {
  Float8LinearConfig config;
  config.cast_config_input = config.cast_config_input_for_grad_weight = input;
  config.cast_config_weight = config.cast_config_weight_for_grad_input = weight;
  config.cast_config_grad_output = config.cast_config_grad_output_for_grad_weight = grad_output;
  return config;
}

Float8LinearConfig tensorwise() {
  const CastConfig e4m3 = dynamic(kE4M3, ScalingGranularity::kTensorwise);
  return make_config(e4m3, e4m3, dynamic(kE5M2, ScalingGranularity::kTensorwise));
}

Float8LinearConfig rowwise() {
  const CastConfig row = dynamic(kE4M3, ScalingGranularity::kAxiswise, ScaleRounding::kPowerOf2);
  return make_config(row, row, row);
}

Float8LinearConfig rowwise_with_gw_hp() {
  Float8LinearConfig config = rowwise();
  config.cast_config_weight_for_grad_input.spec.granularity = ScalingGranularity::kTensorwise;
  config.cast_config_input_for_grad_weight.scaling_type = ScalingType::kDisabled;
  config.cast_config_grad_output_for_grad_weight.scaling_type = ScalingType::kDisabled;
  return config;
}

Float8LinearConfig delayed() {
  Float8LinearConfig config = tensorwise();
  for (const CastConfig* cast : config.casts()) {
    const_cast<CastConfig*>(cast)->scaling_type = ScalingType::kDelayed;
  }
  return config;
}

Float8LinearConfig blockwise() {
  const CastConfig row = dynamic(kE4M3, ScalingGranularity::kBlockwise1x128);
  return make_config(row, dynamic(kE4M3, ScalingGranularity::kBlockwise128x128), row);
}

Float8LinearConfig mxfp8() {
  const CastConfig block =
      dynamic(kE4M3, ScalingGranularity::kBlockwise1x32, ScaleRounding::kE8m0Rceil);
  return make_config(block, block, block);
}

using Recipe = std::pair<std::string_view, Float8LinearConfig (*)()>;
constexpr std::array<Recipe, 6> kRecipes = {{{"tensorwise", tensorwise},
                                             {"rowwise", rowwise},
                                             {"rowwise_with_gw_hp", rowwise_with_gw_hp},
                                             {"delayed", delayed},
                                             {"blockwise", blockwise},
                                             {"mxfp8", mxfp8}}};

std::string join(const std::vector<std::string_view>& names) {
  std::string text;
  for (const std::string_view name : names) {
    text += (text.empty() ? "" : ", ") + std::string(name);
  }
  return text;
}

struct OperandName {
  std::string_view name;
  std::vector<CastConfig Float8LinearConfig::*> casts;
};

const std::vector<OperandName>& operand_names() {
  using C = Float8LinearConfig;
  static const std::vector<OperandName> names = {
      {"input", {&C::cast_config_input, &C::cast_config_input_for_grad_weight}},
      {"weight", {&C::cast_config_weight, &C::cast_config_weight_for_grad_input}},
      {"grad_output", {&C::cast_config_grad_output, &C::cast_config_grad_output_for_grad_weight}},
      {"input_for_output", {&C::cast_config_input}},
      {"input_for_grad_weight", {&C::cast_config_input_for_grad_weight}},
      {"weight_for_output", {&C::cast_config_weight}},
      {"weight_for_grad_input", {&C::cast_config_weight_for_grad_input}},
      {"grad_output_for_grad_input", {&C::cast_config_grad_output}},
      {"grad_output_for_grad_weight", {&C::cast_config_grad_output_for_grad_weight}},
  };
  return names;
}

template <typename T>
using Words = std::vector<std::pair<std::string_view, T>>;

const Words<at::ScalarType> kDtypes = {{"e4m3", kE4M3}, {"e5m2", kE5M2}};
const Words<ScalingGranularity> kGranularities = {
    {"tensorwise", ScalingGranularity::kTensorwise},
    {"rowwise", ScalingGranularity::kAxiswise},
    {"1x128", ScalingGranularity::kBlockwise1x128},
    {"128x128", ScalingGranularity::kBlockwise128x128},
    {"1x32", ScalingGranularity::kBlockwise1x32}};
const Words<ScaleRounding> kRoundings = {{"float", ScaleRounding::kNone},
                                         {"power_of_2", ScaleRounding::kPowerOf2},
                                         {"floor", ScaleRounding::kE8m0Floor},
                                         {"rceil", ScaleRounding::kE8m0Rceil}};
const Words<ScalingType> kTypes = {{"dynamic", ScalingType::kDynamic},
                                   {"delayed", ScalingType::kDelayed},
                                   {"disabled", ScalingType::kDisabled}};

template <typename T>
bool set_if_known(const Words<T>& words, std::string_view word, T& value) {
  for (const auto& [name, meaning] : words) {
    if (name == word) {
      value = meaning;
      return true;
    }
  }
  return false;
}

template <typename T>
std::string word_of(const Words<T>& words, T value) {
  for (const auto& [name, meaning] : words) {
    if (meaning == value) {
      return std::string(name);
    }
  }
  TORCH_INTERNAL_ASSERT(false, "a value without a word");
}

void set_word(CastConfig& cast, std::string_view word) {
  const bool known = set_if_known(kDtypes, word, cast.spec.dtype) ||
                     set_if_known(kGranularities, word, cast.spec.granularity) ||
                     set_if_known(kRoundings, word, cast.spec.rounding) ||
                     set_if_known(kTypes, word, cast.scaling_type);
  TORCH_CHECK(known, "expected e4m3, e5m2, tensorwise, rowwise, 1x128, 128x128, 1x32, float, ",
              "power_of_2, floor, rceil, dynamic, delayed or disabled, got '", word, "'");
}

bool is_disabled(const CastConfig& cast) { return cast.scaling_type == ScalingType::kDisabled; }

// Products that scaled_mm has: equal granularities, square tiles beside 1x128, and a whole tensor
// beside rows (its scale stands for each of them).
bool go_together(const CastSpec& a, const CastSpec& b) {
  using G = ScalingGranularity;
  const auto is = [&](G first, G second) {
    return (a.granularity == first && b.granularity == second) ||
           (a.granularity == second && b.granularity == first);
  };
  return a.granularity == b.granularity || is(G::kBlockwise1x128, G::kBlockwise128x128) ||
         is(G::kTensorwise, G::kAxiswise);
}

void check_product(const char* product, const CastConfig& a, const CastConfig& b) {
  TORCH_CHECK(is_disabled(a) == is_disabled(b), "expected both operands of ", product,
              " in fp8 or none, got ", describe(a), " and ", describe(b),
              "; disable both or neither");
  TORCH_CHECK(is_disabled(a) || go_together(a.spec, b.spec), "expected operands of ", product,
              " that are scaled alike, got ", describe(a), " and ", describe(b),
              "; 1x128 goes with 1x128 and 128x128, tensorwise with tensorwise and rowwise");
}

void check_operand(const char* operand, const CastConfig& a, const CastConfig& b) {
  for (const CastConfig& cast : {a, b}) {
    if (!is_disabled(cast)) {
      check_cast_spec(cast.spec);
    }
    TORCH_CHECK(cast.scaling_type != ScalingType::kDelayed ||
                    cast.spec.granularity == ScalingGranularity::kTensorwise,
                "expected delayed scaling with one scale for the tensor, got ", operand, " ",
                describe(cast), "; make it tensorwise or dynamic");
  }
  TORCH_CHECK(is_disabled(a) || is_disabled(b) || a.spec.dtype == b.spec.dtype, "expected ",
              operand, " in one fp8 dtype for both of its products, got ", describe(a), " and ",
              describe(b));
}

}  // namespace

std::vector<const CastConfig*> Float8LinearConfig::casts() const {
  return {&cast_config_input,       &cast_config_input_for_grad_weight,
          &cast_config_weight,      &cast_config_weight_for_grad_input,
          &cast_config_grad_output, &cast_config_grad_output_for_grad_weight};
}

bool Float8LinearConfig::uses_delayed_scaling() const {
  for (const CastConfig* cast : casts()) {
    if (cast->scaling_type == ScalingType::kDelayed) {
      return true;
    }
  }
  return false;
}

Float8LinearConfig Float8LinearConfig::from_recipe_name(std::string_view name) {
  for (const auto& [known, make] : kRecipes) {
    if (known == name) {
      return make();
    }
  }
  TORCH_CHECK(false, "expected a recipe_name among ", join(recipe_names()), ", got '", name, "'");
}

const std::vector<std::string_view>& recipe_names() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> all;
    for (const auto& [name, make] : kRecipes) {
      all.push_back(name);
    }
    return all;
  }();
  return names;
}

void override_cast(Float8LinearConfig& config, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  TORCH_CHECK(equals != std::string_view::npos,
              "expected OPERAND=WORDS such as grad_output=e4m3 rowwise, got '", assignment, "'");
  const std::string_view name = assignment.substr(0, equals);
  for (const OperandName& operand : operand_names()) {
    if (operand.name != name) {
      continue;
    }
    std::istringstream words{std::string(assignment.substr(equals + 1))};
    for (std::string word; words >> word;) {
      for (const auto cast : operand.casts) {
        set_word(config.*cast, word);
      }
    }
    return;
  }
  std::vector<std::string_view> known;
  for (const OperandName& operand : operand_names()) {
    known.push_back(operand.name);
  }
  TORCH_CHECK(false, "expected an operand among ", join(known), ", got '", name, "'");
}

void set_fast_accum(Float8LinearConfig& config, const std::vector<std::string>& products) {
  config.gemm_config_output.use_fast_accum = false;
  config.gemm_config_grad_input.use_fast_accum = false;
  config.gemm_config_grad_weight.use_fast_accum = false;
  for (const std::string& product : products) {
    const bool is_output = product == "output";
    const bool is_grad_input = product == "grad_input";
    TORCH_CHECK(is_output || is_grad_input || product == "grad_weight",
                "expected a product among output, grad_input, grad_weight, got '", product, "'");
    (is_output       ? config.gemm_config_output
     : is_grad_input ? config.gemm_config_grad_input
                     : config.gemm_config_grad_weight)
        .use_fast_accum = true;
  }
}

void check_config(const Float8LinearConfig& config) {
  const auto& c = config;
  check_operand("input", c.cast_config_input, c.cast_config_input_for_grad_weight);
  check_operand("weight", c.cast_config_weight, c.cast_config_weight_for_grad_input);
  check_operand("grad_output", c.cast_config_grad_output,
                c.cast_config_grad_output_for_grad_weight);
  check_product("output", c.cast_config_input, c.cast_config_weight);
  check_product("grad_input", c.cast_config_grad_output, c.cast_config_weight_for_grad_input);
  check_product("grad_weight", c.cast_config_grad_output_for_grad_weight,
                c.cast_config_input_for_grad_weight);
  TORCH_CHECK(c.amax_history_len >= 1 && c.amax_history_len <= kMaxAmaxHistoryLen,
              "expected amax_history_len in [1, ", kMaxAmaxHistoryLen, "], got ",
              c.amax_history_len);
  for (const CastConfig& cast : {c.cast_config_weight, c.cast_config_weight_for_grad_input}) {
    const bool has_wire_format = cast.spec.granularity == ScalingGranularity::kTensorwise ||
                                 cast.spec.granularity == ScalingGranularity::kAxiswise;
    TORCH_CHECK(!c.enable_fsdp_float8_all_gather || (has_wire_format && !is_disabled(cast)),
                "expected tensorwise or rowwise weights with enable_fsdp_float8_all_gather, got ",
                describe(cast), "; blocks do not end where shards end: gather in high precision");
  }
}

std::string describe(const CastConfig& cast) {
  if (is_disabled(cast)) {
    return "disabled";
  }
  std::string text =
      word_of(kDtypes, cast.spec.dtype) + " " + word_of(kGranularities, cast.spec.granularity);
  if (cast.spec.rounding != ScaleRounding::kNone) {
    text += " " + word_of(kRoundings, cast.spec.rounding);
  }
  return text + " " + word_of(kTypes, cast.scaling_type);
}

}  // namespace narrowgauge::float8
