#include "quantization/scheme.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <sstream>

namespace narrowgauge::quantization {
namespace {

// What a scheme lets one choose.
struct Choices {
  bool group_size = false;
  bool bits = false;
  bool mapping = false;
  bool granularity = false;
  bool eps = false;
};

struct NamedScheme {
  const char* name;
  Scheme (*make)();
  Choices choices;
};

QuantizationSpec affine(int bits, int64_t group_size) {
  QuantizationSpec spec;
  spec.bits = bits;
  spec.granularity = group_size > 0 ? Granularity::kPerGroup : Granularity::kPerRow;
  spec.group_size = std::max<int64_t>(group_size, 0);
  return spec;
}

// MSLK's int4_row_quantize_zp: scales and zero points are bf16 whatever the
// model's dtype.
QuantizationSpec float_zero_point_int4() {
  QuantizationSpec spec = affine(4, 128);
  spec.is_signed = false;
  spec.mapping = MappingType::kAsymmetric;
  spec.zero_point_domain = ZeroPointDomain::kFloat;
  spec.scale_dtype = c10::ScalarType::BFloat16;
  spec.zero_point_dtype = c10::ScalarType::BFloat16;
  spec.eps = 1e-6;
  return spec;
}

// torchao's _apply_int8_act_asym_per_token_quant_dequant: the runtime that
// loads the export clamps scales at the epsilon of its inputs' dtype, so
// training does.
QuantizationSpec asymmetric_int8_tokens() {
  QuantizationSpec spec;
  spec.granularity = Granularity::kPerToken;
  spec.mapping = MappingType::kAsymmetric;
  spec.zero_point_domain = ZeroPointDomain::kInt;
  spec.eps = kEpsOfInput;
  return spec;
}

QuantizationSpec symmetric_int8_tokens() {
  QuantizationSpec spec;
  spec.granularity = Granularity::kPerToken;
  return spec;
}

QuantizationSpec float8(Granularity granularity) {
  QuantizationSpec spec;
  spec.grid = Grid::kFloat8;
  spec.granularity = granularity;
  spec.scale_dtype = c10::ScalarType::Float;
  spec.eps = 1e-12;
  return spec;
}

QuantizationSpec int4_of_float8_rows() {
  QuantizationSpec spec = affine(4, 128);
  spec.mapping = MappingType::kSymmetricFullRange;
  spec.eps = 1e-6;
  spec.float8_rows_first = true;
  return spec;
}

QuantizationSpec blocks(Grid grid, int bits, bool is_signed, int64_t size,
                        c10::ScalarType scale_dtype) {
  QuantizationSpec spec;
  spec.grid = grid;
  spec.bits = bits;
  spec.is_signed = is_signed;
  spec.granularity = Granularity::kPerGroup;
  spec.group_size = size;
  spec.scale_dtype = scale_dtype;
  return spec;
}

Scheme both_operands(const QuantizationSpec& spec) { return {"", spec, spec}; }

Scheme float8_both() { return {"", float8(Granularity::kPerRow), float8(Granularity::kPerToken)}; }

const std::array kSchemes = {
    NamedScheme{"int8-dynamic-act-int4-weight",
                [] {
                  return Scheme{"", affine(4, 32), asymmetric_int8_tokens()};
                },
                {.group_size = true, .eps = true}},
    NamedScheme{"int8-dynamic-act-intx-weight",
                [] {
                  return Scheme{"", affine(8, 32), asymmetric_int8_tokens()};
                },
                {.group_size = true, .bits = true, .mapping = true, .eps = true}},
    NamedScheme{"int4-weight-only",
                [] {
                  return Scheme{"", float_zero_point_int4(), {}};
                },
                {.group_size = true, .eps = true}},
    NamedScheme{"intx-weight-only",
                [] {
                  return Scheme{"", affine(8, 0), {}};
                },
                {.group_size = true, .bits = true, .mapping = true, .eps = true}},
    NamedScheme{"int8-weight-only",
                [] {
                  return Scheme{"", affine(8, 0), {}};
                },
                {.eps = true}},
    NamedScheme{"int8-dynamic-act-int8-weight",
                [] {
                  return Scheme{"", affine(8, 0), symmetric_int8_tokens()};
                },
                {.eps = true}},
    NamedScheme{"float8-weight-only",
                [] {
                  return Scheme{"", float8(Granularity::kPerRow), {}};
                },
                {.granularity = true}},
    NamedScheme{"float8-dynamic-act-float8-weight", float8_both, {.granularity = true}},
    NamedScheme{"float8-act-int4-weight",
                [] {
                  return Scheme{"", int4_of_float8_rows(), float8(Granularity::kPerToken)};
                },
                {.group_size = true, .eps = true}},
    NamedScheme{
        "mxfp8",
        [] { return both_operands(blocks(Grid::kMxfp8, 8, true, 32, c10::ScalarType::Byte)); },
        {}},
    NamedScheme{
        "mxfp4",
        [] { return both_operands(blocks(Grid::kMxfp4, 4, true, 32, c10::ScalarType::Byte)); },
        {}},
    NamedScheme{"nvfp4",
                [] {
                  return both_operands(
                      blocks(Grid::kNvfp4, 4, true, 16, c10::ScalarType::Float8_e4m3fn));
                },
                {}},
    NamedScheme{
        "gguf-q4_0",
        [] {
          return Scheme{"", blocks(Grid::kGgufQ4_0, 4, false, 32, c10::ScalarType::Half), {}};
        },
        {}},
    NamedScheme{
        "gguf-q8_0",
        [] {
          return Scheme{"", blocks(Grid::kGgufQ8_0, 8, true, 32, c10::ScalarType::Half), {}};
        },
        {}},
};

void refuse_unused(const NamedScheme& scheme, const SchemeOptions& options) {
  const auto refuse = [&](bool given, bool possible, const char* what) {
    TORCH_CHECK(!given || possible, "scheme ", scheme.name, " has no choice of ", what,
                "; leave it out");
  };
  refuse(options.group_size.has_value(), scheme.choices.group_size, "group_size");
  refuse(options.bits.has_value(), scheme.choices.bits, "bits");
  refuse(options.mapping.has_value(), scheme.choices.mapping, "mapping");
  refuse(options.granularity.has_value(), scheme.choices.granularity, "granularity");
  refuse(options.eps.has_value(), scheme.choices.eps, "eps");
}

void apply_group_size(QuantizationSpec& weight, int64_t group_size) {
  TORCH_CHECK(group_size == kWholeRow || group_size >= 1,
              "expected group_size of at least 1, or -1 for a whole row, got ", group_size);
  weight.granularity = group_size == kWholeRow ? Granularity::kPerRow : Granularity::kPerGroup;
  weight.group_size = group_size == kWholeRow ? 0 : group_size;
}

void apply(const SchemeOptions& options, Scheme& scheme) {
  if (options.group_size) {
    apply_group_size(scheme.weight, *options.group_size);
  }
  scheme.weight.bits = options.bits.value_or(scheme.weight.bits);
  scheme.weight.eps = options.eps.value_or(scheme.weight.eps);
  if (options.mapping) {
    scheme.weight.mapping = *options.mapping;
    scheme.weight.zero_point_domain = *options.mapping == MappingType::kAsymmetric
                                          ? ZeroPointDomain::kInt
                                          : ZeroPointDomain::kNone;
  }
  if (options.granularity) {
    scheme.weight.granularity = *options.granularity;
    if (scheme.activation && *options.granularity == Granularity::kPerTensor) {
      scheme.activation->granularity = Granularity::kPerTensor;
    }
  }
}

template <typename Number>
Number parse_number(const std::string& value, std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  TORCH_CHECK(error == std::errc() && end == value.data() + value.size(), "expected a number, got ",
              value, " in: ", text);
  return number;
}

template <typename T>
T one_of(const std::map<std::string, T>& words, const std::string& value, std::string_view text) {
  const auto found = words.find(value);
  TORCH_CHECK(found != words.end(), "expected another word than ", value, " in: ", text);
  return found->second;
}

void apply_word(const std::string& key, const std::string& value, std::string_view text,
                SchemeOptions& options) {
  if (key == "group_size") {
    options.group_size = value == "row" ? kWholeRow : parse_number<int64_t>(value, text);
  } else if (key == "bits") {
    options.bits = parse_number<int>(value, text);
  } else if (key == "eps") {
    options.eps = parse_number<double>(value, text);
  } else if (key == "mapping") {
    options.mapping =
        one_of<MappingType>({{"symmetric", MappingType::kSymmetric},
                             {"symmetric_no_clipping_err", MappingType::kSymmetricNoClippingError},
                             {"asymmetric", MappingType::kAsymmetric}},
                            value, text);
  } else if (key == "granularity") {
    options.granularity = one_of<Granularity>(
        {{"per_tensor", Granularity::kPerTensor}, {"per_row", Granularity::kPerRow}}, value, text);
  } else {
    TORCH_CHECK(false, "expected group_size, bits, mapping, granularity or eps, got ", key,
                " in: ", text);
  }
}

}  // namespace

Scheme scheme_by_name(std::string_view name, const SchemeOptions& options) {
  const std::string_view full = name == "8da4w" ? "int8-dynamic-act-int4-weight" : name;
  const auto found = std::find_if(kSchemes.begin(), kSchemes.end(),
                                  [&](const NamedScheme& scheme) { return full == scheme.name; });
  if (found == kSchemes.end()) {
    std::string names;
    for (const std::string& known : scheme_names()) {
      names += (names.empty() ? "" : ", ") + known;
    }
    TORCH_CHECK(false, "expected a scheme (", names, "), got ", name);
  }
  refuse_unused(*found, options);
  Scheme scheme = found->make();
  scheme.name = found->name;
  apply(options, scheme);
  check_spec(scheme.weight);
  return scheme;
}

Scheme parse_scheme(std::string_view text) {
  std::istringstream words{std::string(text)};
  std::string name;
  words >> name;
  SchemeOptions options;
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    TORCH_CHECK(equals != std::string::npos, "expected NAME key=value ..., got ", text);
    apply_word(word.substr(0, equals), word.substr(equals + 1), text, options);
  }
  return scheme_by_name(name, options);
}

std::vector<std::string> scheme_names() {
  std::vector<std::string> names;
  for (const NamedScheme& scheme : kSchemes) {
    names.emplace_back(scheme.name);
  }
  return names;
}

}  // namespace narrowgauge::quantization
