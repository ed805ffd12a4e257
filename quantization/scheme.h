#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "quantization/quantization_spec.h"

namespace narrowgauge::quantization {

// What its users choose: how a linear's weight is written and, where the
// runtime quantizes inputs on the fly, how those are.
struct Scheme {
  std::string name;
  QuantizationSpec weight;
  std::optional<QuantizationSpec> activation;

  bool operator==(const Scheme&) const = default;
};

// Where a scheme leaves a choice. An option that the scheme has no use for is
// an error.
struct SchemeOptions {
  std::optional<int64_t> group_size = {};       // kWholeRow: one scale a row
  std::optional<int> bits = {};                 // of the intx schemes
  std::optional<MappingType> mapping = {};      // of the intx schemes' weights
  std::optional<Granularity> granularity = {};  // of the float8 schemes: kPerRow or kPerTensor
  std::optional<double> eps = {};               // of an affine weight: see QuantizationSpec
};
inline constexpr int64_t kWholeRow = -1;

// Name                            weight                                inputs
// int8-dynamic-act-int4-weight    int4 per group (32), symmetric        int8 per token, asymmetric
// int8-dynamic-act-intx-weight    the same with bits (8) of a choice
// int4-weight-only                uint4 per group (128), float zero point
// intx-weight-only                bits (8) per row or group
// int8-weight-only                int8 per row, symmetric
// int8-dynamic-act-int8-weight    int8 per row, symmetric               int8 per token, symmetric
// float8-weight-only              e4m3 per row (or tensor)
// float8-dynamic-act-float8-weight                                      e4m3 likewise
// float8-act-int4-weight          int4 per group (128) of fp8 rows      e4m3 per token
// mxfp8, mxfp4, nvfp4             their blocks                          the same
// gguf-q4_0, gguf-q8_0            blocks of 32
// The names are torchao's configurations in words; "8da4w" is the first one's short name. Throws
// c10::Error naming the nearest choices for an unknown name.
Scheme scheme_by_name(std::string_view name, const SchemeOptions& options = {});

// A name and options as one text: "intx-weight-only bits=3 group_size=32
// mapping=asymmetric". Keys are those of SchemeOptions; group_size=row is
// kWholeRow; mapping and granularity are the words of spec_json.h ("symmetric",
// "per_tensor"). Throws c10::Error quoting the text.
Scheme parse_scheme(std::string_view text);

// Every name, in the order above, without short names.
std::vector<std::string> scheme_names();

}  // namespace narrowgauge::quantization
