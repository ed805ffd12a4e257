#include "export/torchao_config.h"

#include <c10/util/Exception.h>

#include <string>

namespace narrowgauge::exports {
namespace {

using nlohmann::json;
using quantization::Granularity;
using quantization::Grid;
using quantization::MappingType;
using quantization::QuantizationSpec;
using quantization::Scheme;

json tagged(const char* type, json data) { return {{"_type", type}, {"_data", std::move(data)}}; }

json versioned(const char* type, int version, json data) {
  return {{"_type", type}, {"_version", version}, {"_data", std::move(data)}};
}

json intx_dtype(const QuantizationSpec& spec) {
  return torchao_dtype(((spec.is_signed ? "int" : "uint") + std::to_string(spec.bits)).c_str());
}

json intx_granularity(const QuantizationSpec& spec) {
  return spec.granularity == Granularity::kPerGroup
             ? versioned("PerGroup", 1, {{"group_size", spec.group_size}})
             : versioned("PerAxis", 1, {{"axis", 0}});
}

json mapping_type(const QuantizationSpec& spec) {
  return tagged("MappingType", spec.mapping == MappingType::kAsymmetric ? "ASYMMETRIC"
                               : spec.mapping == MappingType::kSymmetricNoClippingError
                                   ? "SYMMETRIC_NO_CLIPPING_ERR"
                                   : "SYMMETRIC");
}

json float8_granularity(const QuantizationSpec& spec) {
  return spec.granularity == Granularity::kPerTensor ? versioned("PerTensor", 1, json::object())
                                                     : versioned("PerRow", 1, {{"dim", -1}});
}

json per_row() { return versioned("PerRow", 1, {{"dim", -1}}); }

json float8_mm_config() {
  return {{"emulate", false}, {"use_fast_accum", true}, {"pad_inner_dim", false}};
}

json kernel_preference() { return tagged("KernelPreference", "AUTO"); }

json intx_configuration(const Scheme& scheme) {
  const json packing = tagged("IntxPackingFormat", "UNPACKED_TO_INT8");
  const json algorithm = tagged("IntxChooseQParamsAlgorithm", "AFFINE");
  if (scheme.activation) {
    return versioned("Int8DynamicActivationIntxWeightConfig", 2,
                     {{"weight_dtype", intx_dtype(scheme.weight)},
                      {"weight_granularity", intx_granularity(scheme.weight)},
                      {"weight_mapping_type", mapping_type(scheme.weight)},
                      {"weight_scale_dtype", nullptr},
                      {"act_mapping_type", mapping_type(*scheme.activation)},
                      {"intx_packing_format", packing},
                      {"intx_choose_qparams_algorithm", algorithm}});
  }
  return versioned("IntxWeightOnlyConfig", 2,
                   {{"weight_dtype", intx_dtype(scheme.weight)},
                    {"granularity", intx_granularity(scheme.weight)},
                    {"mapping_type", mapping_type(scheme.weight)},
                    {"scale_dtype", nullptr},
                    {"intx_packing_format", packing},
                    {"intx_choose_qparams_algorithm", algorithm}});
}

json int8_configuration(const Scheme& scheme) {
  if (scheme.activation) {
    return versioned("Int8DynamicActivationInt8WeightConfig", 2,
                     {{"act_mapping_type", mapping_type(*scheme.activation)},
                      {"granularity", per_row()},
                      {"set_inductor_config", true}});
  }
  return versioned(
      "Int8WeightOnlyConfig", 2,
      {{"group_size", nullptr}, {"granularity", per_row()}, {"set_inductor_config", true}});
}

json float8_configuration(const Scheme& scheme) {
  const json dtype = torchao_dtype("float8_e4m3fn");
  if (!scheme.activation) {
    return versioned("Float8WeightOnlyConfig", 2,
                     {{"weight_dtype", dtype}, {"set_inductor_config", true}});
  }
  return versioned("Float8DynamicActivationFloat8WeightConfig", 2,
                   {{"activation_dtype", dtype},
                    {"weight_dtype", dtype},
                    {"granularity", json::array({float8_granularity(*scheme.activation),
                                                 float8_granularity(scheme.weight)})},
                    {"packing_format", tagged("Float8PackingFormat", "PLAIN")},
                    {"mm_config", versioned("Float8MMConfig", 1, float8_mm_config())},
                    {"activation_value_lb", nullptr},
                    {"activation_value_ub", nullptr},
                    {"kernel_preference", kernel_preference()},
                    {"set_inductor_config", true}});
}

json mx_configuration(const Scheme& scheme) {
  const json dtype =
      torchao_dtype(scheme.weight.grid == Grid::kMxfp8 ? "float8_e4m3fn" : "float4_e2m1fn_x2");
  return versioned("MXDynamicActivationMXWeightConfig", 1,
                   {{"block_size", 32},
                    {"activation_dtype", dtype},
                    {"weight_dtype", dtype},
                    {"kernel_preference", kernel_preference()},
                    {"scaling_mode", tagged("ScaleCalculationMode", "RCEIL")}});
}

}  // namespace

json torchao_dtype(const char* name) { return tagged("torch.dtype", name); }

const char* torch_dtype_name(at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
              "expected float32, bfloat16 or float16, got ", dtype);
  return dtype == at::kFloat ? "float32" : dtype == at::kHalf ? "float16" : "bfloat16";
}

json torchao_configuration(const Scheme& scheme) {
  if (scheme.weight.grid == Grid::kFloat8) {
    return float8_configuration(scheme);
  }
  if (scheme.weight.grid == Grid::kMxfp8 || scheme.weight.grid == Grid::kMxfp4) {
    return mx_configuration(scheme);
  }
  if (scheme.weight.grid == Grid::kNvfp4) {
    return versioned("NVFP4DynamicActivationNVFP4WeightConfig", 1,
                     {{"use_triton_kernel", false}, {"use_dynamic_per_tensor_scale", true}});
  }
  TORCH_CHECK(scheme.weight.grid == Grid::kAffine, "torchao has no configuration for scheme ",
              scheme.name);
  if (scheme.name == "int8-weight-only" || scheme.name == "int8-dynamic-act-int8-weight") {
    return int8_configuration(scheme);
  }
  if (scheme.name == "int4-weight-only") {
    return versioned(
        "Int4WeightOnlyConfig", 2,
        {{"group_size", scheme.weight.group_size},
         {"set_inductor_config", true},
         {"int4_packing_format", tagged("Int4PackingFormat", "PLAIN")},
         {"int4_choose_qparams_algorithm", tagged("Int4ChooseQParamsAlgorithm", "TINYGEMM")}});
  }
  if (scheme.name == "float8-act-int4-weight") {
    return versioned("Float8DynamicActivationInt4WeightConfig", 1,
                     {{"int4_packing_format", tagged("Int4PackingFormat", "PLAIN")}});
  }
  return intx_configuration(scheme);
}

json torchao_activation(const Scheme& scheme) {
  if (!scheme.activation) {
    return nullptr;
  }
  const QuantizationSpec& activation = *scheme.activation;
  switch (activation.grid) {
    case Grid::kFloat8:
      return tagged("QuantizeTensorToFloat8Kwargs",
                    {{"float8_dtype", torchao_dtype("float8_e4m3fn")},
                     {"granularity", activation.granularity == Granularity::kPerTensor
                                         ? tagged("PerTensor", json::object())
                                         : tagged("PerRow", {{"dim", -1}})},
                     {"mm_config", tagged("Float8MMConfig", float8_mm_config())},
                     {"hp_value_lb", nullptr},
                     {"hp_value_ub", nullptr},
                     {"kernel_preference", kernel_preference()}});
    case Grid::kMxfp8:
    case Grid::kMxfp4:
      return tagged(
          "QuantizeTensorToMXKwargs",
          {{"elem_dtype",
            torchao_dtype(activation.grid == Grid::kMxfp8 ? "float8_e4m3fn" : "float4_e2m1fn_x2")},
           {"block_size", 32},
           {"scaling_mode", tagged("ScaleCalculationMode", "RCEIL")},
           {"kernel_preference", kernel_preference()},
           {"is_swizzled_scales", false}});
    case Grid::kNvfp4:
      return tagged("QuantizeTensorToNVFP4Kwargs", {{"block_size", 16},
                                                    {"is_swizzled_scales", false},
                                                    {"use_triton_kernel", false},
                                                    {"use_dynamic_per_tensor_scale", true}});
    default:
      return tagged("QuantizeTensorToInt8Kwargs", {{"granularity", tagged("PerRow", {{"dim", -1}})},
                                                   {"mapping_type", mapping_type(activation)}});
  }
}

}  // namespace narrowgauge::exports
