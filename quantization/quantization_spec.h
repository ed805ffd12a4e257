#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace narrowgauge::quantization {

// The numbers a code can stand for.
enum class Grid {
  kAffine,    // (code - zero_point) * scale, codes evenly spaced
  kFloat8,    // e4m3 * scale
  kMxfp8,     // e4m3 * 2^e, blocks of 32 (OCP microscaling formats 1.0)
  kMxfp4,     // e2m1 * 2^e, blocks of 32
  kNvfp4,     // e2m1 * (e4m3 of 16) * (fp32 of the tensor)
  kGgufQ4_0,  // (code - 8) * fp16, blocks of 32, as llama.cpp writes them
  kGgufQ8_0,  // code * fp16, blocks of 32
};

// How the range of the values becomes a scale (torchao's words; the last is of MSLK's
// int4_row_quantize, which torchao uses beside fp8 activations).
enum class MappingType {
  kSymmetric,                 // max |x| / ((quant_max - quant_min) / 2): 7.5 for int4
  kSymmetricNoClippingError,  // max(min / quant_min, max / quant_max): nothing is clipped
  kAsymmetric,                // (max - min) / (quant_max - quant_min), with a zero point
  kSymmetricFullRange,        // max |x| / -quant_min: 8 for int4
};

// Which elements share a scale. A tensor of any rank counts as a matrix [rows, cols] here: cols is
// its last dimension. kPerToken and kPerRow are the same for numbers; one is said of activations,
// the other of weights (torchao's PerAxis(0)).
enum class Granularity { kPerTensor, kPerToken, kPerRow, kPerGroup };

// kInt: codes are shifted by an integer; zero is a code. kFloat: `zero_point` is the value of the
// middle code, codes are unsigned (tinygemm's and MSLK's layout). kNone: no zero point.
enum class ZeroPointDomain { kInt, kFloat, kNone };

// As QuantizationSpec::eps: the machine epsilon of the dtype of the tensor that is quantized.
inline constexpr double kEpsOfInput = -1.0;

// Stands for the dtype of the tensor that is quantized.
inline constexpr c10::ScalarType kInputDtype = c10::ScalarType::Undefined;

// How the numbers of one tensor are written. For grids other than kAffine only `grid`,
// `granularity` (kFloat8), `group_size` (the format's own) and `eps` (kFloat8) are read.
struct QuantizationSpec {
  Grid grid = Grid::kAffine;
  int bits = 8;  // 1 to 8
  bool is_signed = true;
  Granularity granularity = Granularity::kPerRow;
  int64_t group_size = 0;  // of kPerGroup
  MappingType mapping = MappingType::kSymmetric;
  c10::ScalarType scale_dtype = kInputDtype;
  ZeroPointDomain zero_point_domain = ZeroPointDomain::kNone;
  c10::ScalarType zero_point_dtype = c10::ScalarType::Char;
  // kAffine: smallest scale (with kFloat zero points: smallest max - min). kFloat8: smallest amax.
  double eps = 1.1920928955078125e-07;  // fp32's
  // Rounds each row to fp8 first: what a kernel with fp8 activations multiplies (torchao's
  // Int4WeightFakeQuantizer with fp8 activations).
  bool float8_rows_first = false;

  int64_t quant_min() const;  // of kAffine
  int64_t quant_max() const;

  bool operator==(const QuantizationSpec&) const = default;
};

// Throws c10::Error naming the field unless the fields fit together.
void check_spec(const QuantizationSpec& spec);

// The number of columns that share a scale. cols: of the matrix. Throws c10::Error, with the
// remedy, unless it divides cols.
int64_t group_columns(const QuantizationSpec& spec, int64_t cols);

// For people: "int4 per group of 32, symmetric".
std::string describe(const QuantizationSpec& spec);

}  // namespace narrowgauge::quantization
