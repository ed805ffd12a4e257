#include "export/torchao_layout.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "checkpoint/strict_json.h"
#include "export/torchao_config.h"

namespace narrowgauge::exports {
namespace {

using nlohmann::json;
using quantization::Granularity;
using quantization::Grid;
using quantization::MappingType;
using quantization::QuantizationSpec;
using quantization::QuantizedTensor;
using quantization::Scheme;
using quantization::ZeroPointDomain;

constexpr const char* kEmbedding = "model.embed_tokens";

enum class TensorClass { kIntx, kInt8, kFloat8, kInt4, kMx, kNvfp4 };

TensorClass tensor_class(const Scheme& scheme) {
  switch (scheme.weight.grid) {
    case Grid::kFloat8:
      return TensorClass::kFloat8;
    case Grid::kMxfp8:
    case Grid::kMxfp4:
      return TensorClass::kMx;
    case Grid::kNvfp4:
      return TensorClass::kNvfp4;
    default:
      break;
  }
  if (scheme.name == "int8-weight-only" || scheme.name == "int8-dynamic-act-int8-weight") {
    return TensorClass::kInt8;
  }
  if (scheme.weight.zero_point_domain == ZeroPointDomain::kFloat ||
      scheme.weight.float8_rows_first) {
    return TensorClass::kInt4;
  }
  return TensorClass::kIntx;
}

const char* class_name(TensorClass kind) {
  switch (kind) {
    case TensorClass::kIntx:
      return "IntxUnpackedToInt8Tensor";
    case TensorClass::kInt8:
      return "Int8Tensor";
    case TensorClass::kFloat8:
      return "Float8Tensor";
    case TensorClass::kInt4:
      return "Int4Tensor";
    case TensorClass::kMx:
      return "MXTensor";
    case TensorClass::kNvfp4:
      return "NVFP4Tensor";
  }
  TORCH_CHECK(false, "expected a tensor class");
}

// The tensors of a class, in the order of torchao's own files.
std::vector<std::string> data_names(TensorClass kind) {
  switch (kind) {
    case TensorClass::kIntx:
    case TensorClass::kInt4:
      return {"qdata", "scale", "zero_point"};
    case TensorClass::kInt8:
      return {"zero_point", "qdata", "scale"};
    case TensorClass::kNvfp4:
      return {"per_tensor_scale", "qdata", "scale"};
    default:
      return {"qdata", "scale"};
  }
}

// Two 4-bit codes a byte, the even one low: [rows, cols / 2].
at::Tensor pack_nibbles(const at::Tensor& codes) {
  const at::Tensor pairs = codes.contiguous().view({codes.size(0), codes.size(1) / 2, 2});
  return pairs.select(2, 0).bitwise_or(pairs.select(2, 1).mul(16));
}

at::Tensor unpack_nibbles(const at::Tensor& bytes) {
  return at::stack({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, 2)
      .reshape({bytes.size(0), bytes.size(1) * 2});
}

// Int4Tensor's nibbles are two's complement of code - 8: the top bit is flipped.
at::Tensor int4_qdata(const QuantizedTensor& weight) {
  const at::Tensor nibbles = weight.spec.is_signed ? weight.codes.view(at::kByte).bitwise_and(15)
                                                   : weight.codes.bitwise_xor(8);
  return pack_nibbles(nibbles).view(at::kChar);
}

at::Tensor int4_codes(const at::Tensor& qdata, bool is_signed) {
  const at::Tensor nibbles = unpack_nibbles(qdata.view(at::kByte));
  return is_signed ? nibbles.bitwise_xor(8).sub(8).view(at::kChar) : nibbles.bitwise_xor(8);
}

bool is_packed(Grid grid) { return grid == Grid::kMxfp4 || grid == Grid::kNvfp4; }

std::string data_prefix(const std::string& module) { return module + "._weight_"; }

int64_t group_of(const Scheme& scheme, int64_t cols) {
  return scheme.weight.granularity == Granularity::kPerGroup ? scheme.weight.group_size : cols;
}

json block_size(const Scheme& scheme, int64_t rows, int64_t cols) {
  return json::array(
      {scheme.weight.granularity == Granularity::kPerTensor ? rows : 1, group_of(scheme, cols)});
}

// The attributes of the class, as its own files spell them.
json attributes(const Scheme& scheme, int64_t rows, int64_t cols, at::ScalarType dtype) {
  const json torch_dtype = torchao_dtype(torch_dtype_name(dtype));
  switch (tensor_class(scheme)) {
    case TensorClass::kIntx:
      return {{"target_dtype", torchao_dtype(("int" + std::to_string(scheme.weight.bits)).c_str())},
              {"block_size", block_size(scheme, rows, cols)},
              {"dtype", torch_dtype},
              {"activation_quantization",
               scheme.activation ? json("int8_asym_per_token") : json(nullptr)}};
    case TensorClass::kInt8:
      return {{"act_quant_kwargs", torchao_activation(scheme)},
              {"block_size", block_size(scheme, rows, cols)},
              {"dtype", torch_dtype}};
    case TensorClass::kFloat8:
      return {{"block_size", block_size(scheme, rows, cols)},
              {"mm_config", scheme.activation ? torchao_activation(scheme)["_data"]["mm_config"]
                                              : json(nullptr)},
              {"act_quant_kwargs", torchao_activation(scheme)},
              {"kernel_preference", {{"_type", "KernelPreference"}, {"_data", "AUTO"}}},
              {"dtype", torch_dtype}};
    case TensorClass::kInt4:
      return {
          {"block_size", block_size(scheme, rows, cols)},
          {"shape", json::array({rows, cols})},
          {"activation_dtype", torchao_dtype(scheme.activation ? "float8_e4m3fn" : "bfloat16")}};
    case TensorClass::kMx: {
      const json activation = torchao_activation(scheme);
      return {{"elem_dtype", activation["_data"]["elem_dtype"]},
              {"block_size", 32},
              {"orig_dtype", torch_dtype},
              {"kernel_preference", {{"_type", "KernelPreference"}, {"_data", "AUTO"}}},
              {"act_quant_kwargs", activation},
              {"is_swizzled_scales", false}};
    }
    case TensorClass::kNvfp4:
      return {{"block_size", 16},
              {"orig_dtype", torch_dtype},
              {"is_swizzled_scales", false},
              {"use_triton_kernel", false},
              {"act_quant_kwargs", torchao_activation(scheme)}};
  }
  TORCH_CHECK(false, "expected a tensor class");
}

std::optional<std::string> refuse_intx(const QuantizationSpec& spec) {
  if (!spec.is_signed) {
    return "IntxUnpackedToInt8Tensor holds signed codes alone";
  }
  if (spec.mapping == MappingType::kSymmetricFullRange) {
    return "torchao has no mapping of the largest value to -quant_min";
  }
  if (spec.granularity == Granularity::kPerTensor) {
    return "torchao's intx weights have scales per row or group";
  }
  return std::nullopt;
}

class TorchaoLayout : public WeightLayout {
 public:
  std::string name() const override { return "torchao"; }

  std::optional<std::string> refusal(const std::string& module,
                                     const Scheme& scheme) const override {
    const Grid grid = scheme.weight.grid;
    if (grid == Grid::kGgufQ4_0 || grid == Grid::kGgufQ8_0) {
      return "torchao has no blocks of GGUF";
    }
    const TensorClass kind = tensor_class(scheme);
    if (module == kEmbedding && (kind != TensorClass::kIntx || scheme.activation)) {
      return "torchao looks embeddings up in intx-weight-only alone";
    }
    return kind == TensorClass::kIntx ? refuse_intx(scheme.weight) : std::nullopt;
  }

  std::vector<NamedTensor> pack(const std::string& module, const Scheme& scheme,
                                const QuantizedTensor& weight, at::ScalarType) const override {
    const TensorClass kind = tensor_class(scheme);
    std::map<std::string, at::Tensor> parts = {{"qdata", weight.codes}, {"scale", weight.scale}};
    if (kind == TensorClass::kIntx || kind == TensorClass::kInt8) {
      parts["zero_point"] =
          weight.zero_point.value_or(at::zeros_like(weight.scale, at::TensorOptions(at::kChar)));
    } else if (kind == TensorClass::kInt4) {
      parts["qdata"] = int4_qdata(weight);
      parts["scale"] = weight.scale.t().contiguous();
      parts["zero_point"] =
          weight.zero_point.value_or(at::zeros_like(weight.scale)).t().contiguous();
    } else if (is_packed(scheme.weight.grid)) {
      parts["qdata"] = pack_nibbles(weight.codes);
    }
    if (kind == TensorClass::kMx) {
      parts["scale"] = weight.scale.view(at::kFloat8_e8m0fnu);
    } else if (kind == TensorClass::kNvfp4) {
      parts["per_tensor_scale"] = weight.outer_scale->reshape({});
    }
    std::vector<NamedTensor> tensors;
    for (const std::string& name : data_names(kind)) {
      tensors.push_back({data_prefix(module) + name, parts.at(name)});
    }
    return tensors;
  }

  QuantizedTensor unpack(const std::string& module, const Scheme& scheme,
                         const TensorReader& read) const override {
    const TensorClass kind = tensor_class(scheme);
    const auto part = [&](const char* name) { return read(data_prefix(module) + name); };
    QuantizedTensor weight;
    weight.spec = scheme.weight;
    weight.codes = part("qdata");
    weight.scale = part("scale");
    if (kind == TensorClass::kInt4) {
      weight.codes = int4_codes(weight.codes, scheme.weight.is_signed);
      weight.scale = weight.scale.t().contiguous();
    } else if (is_packed(scheme.weight.grid)) {
      weight.codes = unpack_nibbles(weight.codes);
    }
    if (kind == TensorClass::kMx) {
      weight.scale = weight.scale.view(at::kByte);
    } else if (kind == TensorClass::kNvfp4) {
      weight.outer_scale = part("per_tensor_scale").reshape({1, 1});
    }
    if (kind == TensorClass::kIntx || kind == TensorClass::kInt8 || kind == TensorClass::kInt4) {
      const at::Tensor zero_point = part("zero_point");
      if (scheme.weight.zero_point_domain == ZeroPointDomain::kNone) {
        TORCH_CHECK(zero_point.eq(0).all().item<bool>(), module,
                    ": expected zero points of 0 for scheme ", scheme.name);
      } else {
        weight.zero_point = kind == TensorClass::kInt4 ? zero_point.t().contiguous() : zero_point;
      }
    }
    return weight;
  }

  json quantization_config(const ExportModel& model) const override;
  std::map<std::string, std::string> metadata(const ExportModel& model) const override;
};

json TorchaoLayout::quantization_config(const ExportModel& model) const {
  std::vector<std::string> plain;
  json by_module = json::object();
  bool is_uniform = true;
  const Scheme& first = model.schemes.begin()->second;
  for (const std::string& module : linear_modules(model.config.transformer)) {
    const auto found = model.schemes.find(module);
    if (found == model.schemes.end()) {
      plain.push_back(module);
    }
  }
  for (const auto& [module, scheme] : model.schemes) {
    is_uniform = is_uniform && scheme == first;
    by_module[module] = torchao_configuration(scheme);
  }
  const json uniform = torchao_configuration(first);
  const json mixed = {{"_type", "FqnToConfig"},
                      {"_version", 1},
                      {"_data", {{"fqn_to_config", by_module}, {"version", 1}}}};
  const bool ends = model.schemes.count("lm_head") > 0 || model.schemes.count(kEmbedding) > 0;
  return {{"quant_method", "torchao"},
          {"quant_type", {{"default", is_uniform ? uniform : mixed}}},
          {"quant_type_kwargs", json::object()},
          {"modules_to_not_convert", plain},
          {"include_input_output_embeddings", ends},
          {"untie_embedding_weights", false}};
}

std::map<std::string, std::string> TorchaoLayout::metadata(const ExportModel& model) const {
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  json names = json::array();
  for (const ModelTensor& tensor : model_tensors(model.config.transformer)) {
    names.push_back(tensor.name);
    const auto found =
        tensor.module.empty() ? model.schemes.end() : model.schemes.find(tensor.module);
    json entry = {{"_type", "Tensor"}};
    if (found != model.schemes.end()) {
      const TensorClass kind = tensor_class(found->second);
      entry = {{"_type", class_name(kind)},
               {"_data", attributes(found->second, tensor.sizes[0], tensor.sizes[1], model.dtype)},
               {"_tensor_data_names", data_names(kind)}};
    }
    metadata[tensor.name] = entry.dump();
  }
  metadata["tensor_names"] = names.dump();
  return metadata;
}

}  // namespace

std::unique_ptr<WeightLayout> torchao_layout() { return std::make_unique<TorchaoLayout>(); }

}  // namespace narrowgauge::exports
