#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "float8/scaling.h"

namespace narrowgauge::float8 {

enum class ScalingType {
  kDynamic,   // the scale comes from the tensor that is cast
  kDelayed,   // from the largest magnitudes of the steps before: one pass instead of two
  kDisabled,  // stays in high precision
};

// How one operand of one matrix product is cast.
struct CastConfig {
  ScalingType scaling_type = ScalingType::kDynamic;
  CastSpec spec;

  bool operator==(const CastConfig&) const = default;
};

// How one matrix product is computed.
struct Float8GemmConfig {
  // Sums within the tensor cores' shorter accumulator (about 14 bits) instead of fp32: faster on a
  // GPU. Ignored on CPU, and for scales per block, which have no such product.
  bool use_fast_accum = false;
};

// Which of the remembered amaxes gives a delayed scale (Transformer Engine's amax_compute_algo).
enum class AmaxComputeAlgo { kMax, kMostRecent };

// How a Float8Linear computes. The words are torchao's. Its three products and their operands:
//
//   output      = input . weight^T             cast_config_input, cast_config_weight
//   grad_input  = grad_output . weight         cast_config_grad_output, ..._weight_for_grad_input
//   grad_weight = grad_output^T . input        ..._grad_output_for_grad_weight,
//                                              ..._input_for_grad_weight
struct Float8LinearConfig {
  CastConfig cast_config_input;
  CastConfig cast_config_input_for_grad_weight;
  CastConfig cast_config_weight;
  CastConfig cast_config_weight_for_grad_input;
  CastConfig cast_config_grad_output;
  CastConfig cast_config_grad_output_for_grad_weight;

  // torchao's defaults: gradients, whose errors add up in the weights, are summed in fp32.
  Float8GemmConfig gemm_config_output = {.use_fast_accum = true};
  Float8GemmConfig gemm_config_grad_input;
  Float8GemmConfig gemm_config_grad_weight;

  // Of delayed scaling: how many steps are remembered, and what becomes of them.
  int64_t amax_history_len = 16;
  AmaxComputeAlgo amax_compute_algo = AmaxComputeAlgo::kMax;

  // Weights travel between ranks as fp8, one byte an element.
  bool enable_fsdp_float8_all_gather = false;
  // Also convert linears whose sizes are no multiples of 16.
  bool pad_inner_dim = false;
  // Products of dequantized operands in fp32: the plain reference, on any device.
  bool emulate = false;

  // One of recipe_names():
  //                        input            weight            grad_output     scales
  //   tensorwise           tensor e4m3      tensor e4m3       tensor e5m2     fp32
  //   rowwise              row e4m3         row e4m3          row e4m3        powers of two
  //   rowwise_with_gw_hp   row e4m3         row e4m3          row e4m3        powers of two; the
  //                        weight for grad_input is tensor e4m3, grad_weight is not in fp8 at all
  //   delayed              as tensorwise, scales from history
  //   blockwise            1x128 e4m3       128x128 e4m3      1x128 e4m3      fp32
  //   mxfp8                1x32 e4m3        1x32 e4m3         1x32 e4m3       e8m0, rounded up
  // The first three compute what torchao's recipes of the same names do. Throws c10::Error that
  // lists the names for any other.
  static Float8LinearConfig from_recipe_name(std::string_view name);

  std::vector<const CastConfig*> casts() const;
  bool uses_delayed_scaling() const;
};

const std::vector<std::string_view>& recipe_names();

// Changes the casts of one operand (input | weight | grad_output; in both of its products), or of
// one product's (input_for_grad_weight | ...; "_for_output" where it is meant apart): words after
// the equals sign, in any order, each of which sets what it names and leaves the rest:
//   e4m3 e5m2 | tensorwise rowwise 1x128 128x128 1x32 | float power_of_2 floor rceil |
//   dynamic delayed disabled
// "grad_output=e4m3 rowwise". Throws c10::Error with a sentence.
void override_cast(Float8LinearConfig& config, std::string_view assignment);

// Sets use_fast_accum for the products named (output | grad_input | grad_weight), and clears it for
// the others. Throws c10::Error with a sentence.
void set_fast_accum(Float8LinearConfig& config, const std::vector<std::string>& products);

// Throws c10::Error with a sentence where operands do not go together.
void check_config(const Float8LinearConfig& config);

// "e4m3 tensorwise dynamic", as override_cast reads it.
std::string describe(const CastConfig& cast);

}  // namespace narrowgauge::float8
