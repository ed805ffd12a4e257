#include "quantization/quantization_spec.h"

#include <c10/util/Exception.h>

namespace narrowgauge::quantization {
namespace {

constexpr int64_t kMxBlock = 32;
constexpr int64_t kNvfp4Block = 16;
constexpr int64_t kGgufBlock = 32;

// Columns of a block where the format fixes them, else 0.
int64_t fixed_block(Grid grid) {
  switch (grid) {
    case Grid::kMxfp8:
    case Grid::kMxfp4:
      return kMxBlock;
    case Grid::kNvfp4:
      return kNvfp4Block;
    case Grid::kGgufQ4_0:
    case Grid::kGgufQ8_0:
      return kGgufBlock;
    case Grid::kAffine:
    case Grid::kFloat8:
      return 0;
  }
  TORCH_CHECK(false, "expected a grid, got ", static_cast<int>(grid));
}

void check_affine(const QuantizationSpec& spec) {
  TORCH_CHECK(spec.bits >= 1 && spec.bits <= 8, "expected 1 to 8 bits, got ", spec.bits);
  const bool asymmetric = spec.mapping == MappingType::kAsymmetric;
  const bool full_range = spec.mapping == MappingType::kSymmetricFullRange ||
                          spec.mapping == MappingType::kSymmetricNoClippingError;
  TORCH_CHECK(!full_range || (spec.is_signed && spec.bits >= 2),
              "expected signed codes of 2 bits or more with this mapping, "
              "which divides by both "
              "bounds of the codes");
  switch (spec.zero_point_domain) {
    case ZeroPointDomain::kNone:
      TORCH_CHECK(!asymmetric && spec.is_signed,
                  "expected a zero point with asymmetric or unsigned codes, got none");
      return;
    case ZeroPointDomain::kInt:
      return;
    case ZeroPointDomain::kFloat:
      TORCH_CHECK(asymmetric && !spec.is_signed,
                  "expected asymmetric unsigned codes with a zero point in "
                  "floating point");
      return;
  }
}

std::string describe_affine(const QuantizationSpec& spec) {
  const std::string number = (spec.is_signed ? "int" : "uint") + std::to_string(spec.bits);
  switch (spec.mapping) {
    case MappingType::kSymmetric:
      return number + " symmetric";
    case MappingType::kSymmetricNoClippingError:
      return number + " symmetric without clipping";
    case MappingType::kSymmetricFullRange:
      return number + " symmetric over the full range";
    case MappingType::kAsymmetric:
      return number + (spec.zero_point_domain == ZeroPointDomain::kFloat
                           ? " asymmetric with a float zero point"
                           : " asymmetric");
  }
  return number;
}

std::string describe_numbers(const QuantizationSpec& spec) {
  switch (spec.grid) {
    case Grid::kAffine:
      return describe_affine(spec) + (spec.float8_rows_first ? " of fp8 rows" : "");
    case Grid::kFloat8:
      return "float8_e4m3fn";
    case Grid::kMxfp8:
      return "MXFP8";
    case Grid::kMxfp4:
      return "MXFP4";
    case Grid::kNvfp4:
      return "NVFP4";
    case Grid::kGgufQ4_0:
      return "Q4_0";
    case Grid::kGgufQ8_0:
      return "Q8_0";
  }
  return "";
}

}  // namespace

int64_t QuantizationSpec::quant_min() const { return is_signed ? -(int64_t{1} << (bits - 1)) : 0; }

int64_t QuantizationSpec::quant_max() const {
  return is_signed ? (int64_t{1} << (bits - 1)) - 1 : (int64_t{1} << bits) - 1;
}

void check_spec(const QuantizationSpec& spec) {
  if (spec.grid == Grid::kAffine) {
    check_affine(spec);
  }
  if (spec.grid == Grid::kFloat8) {
    TORCH_CHECK(spec.granularity != Granularity::kPerGroup,
                "expected fp8 per tensor or per row, got per group");
  }
  TORCH_CHECK(spec.granularity != Granularity::kPerGroup || fixed_block(spec.grid) != 0 ||
                  spec.group_size >= 1,
              "expected group_size of at least 1 per group, got ", spec.group_size);
}

int64_t group_columns(const QuantizationSpec& spec, int64_t cols) {
  const int64_t block = fixed_block(spec.grid);
  const int64_t group = block != 0                                   ? block
                        : spec.granularity == Granularity::kPerGroup ? spec.group_size
                                                                     : cols;
  TORCH_CHECK(group > 0 ? cols % group == 0 : cols == 0, "expected a last dimension divisible by ",
              group, " (", describe(spec), "), got ", cols,
              "; choose another group_size, or leave the layer out");
  return group;
}

std::string describe(const QuantizationSpec& spec) {
  const std::string numbers = describe_numbers(spec);
  if (fixed_block(spec.grid) != 0) {
    return numbers;
  }
  switch (spec.granularity) {
    case Granularity::kPerTensor:
      return numbers + " per tensor";
    case Granularity::kPerToken:
      return numbers + " per token";
    case Granularity::kPerRow:
      return numbers + " per row";
    case Granularity::kPerGroup:
      return numbers + " per group of " + std::to_string(spec.group_size);
  }
  return numbers;
}

}  // namespace narrowgauge::quantization
