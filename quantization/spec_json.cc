#include "quantization/spec_json.h"

#include <c10/util/Exception.h>

#include <array>
#include <stdexcept>
#include <utility>

#include "checkpoint/strict_json.h"

namespace narrowgauge::quantization {
namespace {

using checkpoint::json_value;

template <typename T, size_t n>
using Words = std::array<std::pair<const char*, T>, n>;

constexpr Words<Grid, 7> kGrids = {{{"affine", Grid::kAffine},
                                    {"float8", Grid::kFloat8},
                                    {"mxfp8", Grid::kMxfp8},
                                    {"mxfp4", Grid::kMxfp4},
                                    {"nvfp4", Grid::kNvfp4},
                                    {"gguf_q4_0", Grid::kGgufQ4_0},
                                    {"gguf_q8_0", Grid::kGgufQ8_0}}};
constexpr Words<MappingType, 4> kMappings = {
    {{"symmetric", MappingType::kSymmetric},
     {"symmetric_no_clipping_err", MappingType::kSymmetricNoClippingError},
     {"asymmetric", MappingType::kAsymmetric},
     {"symmetric_full_range", MappingType::kSymmetricFullRange}}};
constexpr Words<Granularity, 4> kGranularities = {{{"per_tensor", Granularity::kPerTensor},
                                                   {"per_token", Granularity::kPerToken},
                                                   {"per_row", Granularity::kPerRow},
                                                   {"per_group", Granularity::kPerGroup}}};
constexpr Words<ZeroPointDomain, 3> kDomains = {{{"int", ZeroPointDomain::kInt},
                                                 {"float", ZeroPointDomain::kFloat},
                                                 {"none", ZeroPointDomain::kNone}}};
constexpr Words<c10::ScalarType, 8> kDtypes = {{{"input", kInputDtype},
                                                {"float32", c10::ScalarType::Float},
                                                {"bfloat16", c10::ScalarType::BFloat16},
                                                {"float16", c10::ScalarType::Half},
                                                {"int8", c10::ScalarType::Char},
                                                {"uint8", c10::ScalarType::Byte},
                                                {"int32", c10::ScalarType::Int},
                                                {"float8_e4m3fn", c10::ScalarType::Float8_e4m3fn}}};

template <typename T, size_t n>
const char* word_of(const Words<T, n>& words, T value) {
  for (const auto& [word, meaning] : words) {
    if (meaning == value) {
      return word;
    }
  }
  TORCH_CHECK(false, "expected a value with a name, got ", static_cast<int>(value));
}

template <typename T, size_t n>
T by_word(const Words<T, n>& words, const std::string& word, const std::string& source) {
  std::string known;
  for (const auto& [name, meaning] : words) {
    if (word == name) {
      return meaning;
    }
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  throw std::runtime_error(source + ": expected one of " + known + ", got " + word);
}

template <typename T, size_t n>
T field(const nlohmann::json& json, const char* key, const Words<T, n>& words,
        const std::string& source) {
  return by_word(words, json_value<std::string>(json, key, source), source + "." + key);
}

constexpr size_t kNumSpecFields = 11;

}  // namespace

nlohmann::ordered_json to_json(const QuantizationSpec& spec) {
  return {{"grid", word_of(kGrids, spec.grid)},
          {"bits", spec.bits},
          {"is_signed", spec.is_signed},
          {"granularity", word_of(kGranularities, spec.granularity)},
          {"group_size", spec.group_size},
          {"mapping", word_of(kMappings, spec.mapping)},
          {"scale_dtype", dtype_name(spec.scale_dtype)},
          {"zero_point_domain", word_of(kDomains, spec.zero_point_domain)},
          {"zero_point_dtype", dtype_name(spec.zero_point_dtype)},
          {"eps", spec.eps},
          {"float8_rows_first", spec.float8_rows_first}};
}

nlohmann::ordered_json to_json(const Scheme& scheme) {
  nlohmann::ordered_json json = {{"name", scheme.name}, {"weight", to_json(scheme.weight)}};
  if (scheme.activation) {
    json["activation"] = to_json(*scheme.activation);
  }
  return json;
}

QuantizationSpec spec_from_json(const nlohmann::json& json, const std::string& source) {
  if (!json.is_object() || json.size() != kNumSpecFields) {
    throw std::runtime_error(source + ": expected an object of " + std::to_string(kNumSpecFields) +
                             " fields");
  }
  QuantizationSpec spec;
  spec.grid = field(json, "grid", kGrids, source);
  const int64_t bits = json_value<int64_t>(json, "bits", source);
  spec.bits = bits >= 1 && bits <= 8 ? static_cast<int>(bits) : 0;  // 0: check_spec refuses it
  spec.is_signed = json_value<bool>(json, "is_signed", source);
  spec.granularity = field(json, "granularity", kGranularities, source);
  spec.group_size = json_value<int64_t>(json, "group_size", source);
  spec.mapping = field(json, "mapping", kMappings, source);
  spec.scale_dtype = field(json, "scale_dtype", kDtypes, source);
  spec.zero_point_domain = field(json, "zero_point_domain", kDomains, source);
  spec.zero_point_dtype = field(json, "zero_point_dtype", kDtypes, source);
  spec.eps = json_value<double>(json, "eps", source);
  spec.float8_rows_first = json_value<bool>(json, "float8_rows_first", source);
  try {
    check_spec(spec);
  } catch (const c10::Error& error) {
    throw std::runtime_error(source + ": " + error.what_without_backtrace());
  }
  return spec;
}

Scheme scheme_from_json(const nlohmann::json& json, const std::string& source) {
  if (!json.is_object() || !json.contains("weight") ||
      json.size() != (json.contains("activation") ? 3U : 2U)) {
    throw std::runtime_error(source + ": expected name, weight and perhaps activation");
  }
  Scheme scheme;
  scheme.name = json_value<std::string>(json, "name", source);
  scheme.weight = spec_from_json(json["weight"], source + ".weight");
  if (json.contains("activation")) {
    scheme.activation = spec_from_json(json["activation"], source + ".activation");
  }
  return scheme;
}

std::string dtype_name(c10::ScalarType dtype) { return word_of(kDtypes, dtype); }

c10::ScalarType dtype_by_name(const std::string& name, const std::string& source) {
  return by_word(kDtypes, name, source);
}

}  // namespace narrowgauge::quantization
