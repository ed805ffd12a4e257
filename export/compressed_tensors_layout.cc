#include "export/compressed_tensors_layout.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace narrowgauge::exports {
namespace {

using nlohmann::json;
using quantization::Granularity;
using quantization::Grid;
using quantization::QuantizationSpec;
using quantization::QuantizedTensor;
using quantization::Scheme;
using quantization::ZeroPointDomain;

constexpr const char* kPack = "pack-quantized";
constexpr const char* kInt = "int-quantized";
constexpr const char* kFloat = "float-quantized";

const char* format_of(const Scheme& scheme) {
  if (scheme.weight.grid == Grid::kFloat8) {
    return kFloat;
  }
  return scheme.weight.bits == 8 && scheme.activation ? kInt : kPack;
}

// int8 [rows, cols] to int32 [rows, words]: 32 / bits codes a word along the columns.
at::Tensor pack_words(const at::Tensor& codes, int bits) {
  const int64_t in_word = 32 / bits;
  const int64_t words = (codes.size(1) + in_word - 1) / in_word;
  const at::Tensor shifted = codes.to(at::kInt).add(int64_t{1} << (bits - 1));
  const at::Tensor padded = at::constant_pad_nd(shifted, {0, words * in_word - codes.size(1)}, 0);
  const at::Tensor places = at::arange(in_word, shifted.options()).mul(bits);
  return padded.reshape({codes.size(0), words, in_word})
      .bitwise_left_shift(places)
      .sum({2}, /*keepdim=*/false, at::kInt);
}

at::Tensor unpack_words(const at::Tensor& words, int bits, int64_t cols) {
  const int64_t in_word = 32 / bits;
  const at::Tensor places = at::arange(in_word, words.options()).mul(bits);
  const at::Tensor codes = words.unsqueeze(2)
                               .bitwise_right_shift(places)
                               .bitwise_and((int64_t{1} << bits) - 1)
                               .sub(int64_t{1} << (bits - 1));
  return codes.reshape({words.size(0), words.size(1) * in_word})
      .narrow(1, 0, cols)
      .to(at::kChar)
      .contiguous();
}

json arguments(const QuantizationSpec& spec, bool is_activation) {
  const bool is_float = spec.grid == Grid::kFloat8;
  const bool is_group = spec.granularity == Granularity::kPerGroup;
  const bool is_tensor = spec.granularity == Granularity::kPerTensor;
  return {{"num_bits", is_float ? 8 : spec.bits},
          {"type", is_float ? "float" : "int"},
          {"symmetric", spec.zero_point_domain == ZeroPointDomain::kNone},
          {"strategy", is_tensor       ? "tensor"
                       : is_activation ? "token"
                       : is_group      ? "group"
                                       : "channel"},
          {"group_size", is_group && !is_activation ? json(spec.group_size) : json(nullptr)},
          {"dynamic", is_activation},
          {"block_structure", nullptr},
          {"actorder", nullptr}};
}

class CompressedTensorsLayout : public WeightLayout {
 public:
  std::string name() const override { return "compressed-tensors"; }

  std::optional<std::string> refusal(const std::string& module,
                                     const Scheme& scheme) const override {
    const QuantizationSpec& weight = scheme.weight;
    if (module == "model.embed_tokens") {
      return "its runtimes quantize linears alone";
    }
    if (weight.grid != Grid::kAffine && weight.grid != Grid::kFloat8) {
      return "written are integer weights and e4m3 per row or tensor";
    }
    if (weight.zero_point_domain == ZeroPointDomain::kFloat) {
      return "its zero points are integers, this scheme's are values; choose torchao";
    }
    if (weight.grid == Grid::kAffine && !weight.is_signed) {
      return "its codes are signed";
    }
    if (weight.float8_rows_first) {
      return "it has no 4-bit weights below fp8 activations; choose torchao";
    }
    if (weight.grid == Grid::kAffine && weight.granularity == Granularity::kPerTensor) {
      return "written are scales per row or group";
    }
    return std::nullopt;
  }

  std::vector<NamedTensor> pack(const std::string& module, const Scheme& scheme,
                                const QuantizedTensor& weight, at::ScalarType) const override {
    const bool is_tensor = scheme.weight.granularity == Granularity::kPerTensor;
    const NamedTensor scale = {module + ".weight_scale",
                               is_tensor ? weight.scale.reshape({1}) : weight.scale};
    if (format_of(scheme) != kPack) {
      std::vector<NamedTensor> tensors = {{module + ".weight", weight.codes}, scale};
      if (weight.zero_point) {
        tensors.push_back({module + ".weight_zero_point", *weight.zero_point});
      }
      return tensors;
    }
    const int bits = scheme.weight.bits;
    std::vector<NamedTensor> tensors = {{module + ".weight_packed", pack_words(weight.codes, bits)},
                                        scale};
    tensors.push_back(
        {module + ".weight_shape", at::tensor(weight.codes.sizes(), at::TensorOptions(at::kLong))});
    if (weight.zero_point) {
      tensors.push_back({module + ".weight_zero_point",
                         pack_words(weight.zero_point->t(), bits).t().contiguous()});
    }
    return tensors;
  }

  QuantizedTensor unpack(const std::string& module, const Scheme& scheme,
                         const TensorReader& read) const override {
    const bool has_zero_point = scheme.weight.zero_point_domain != ZeroPointDomain::kNone;
    QuantizedTensor weight;
    weight.spec = scheme.weight;
    weight.scale = read(module + ".weight_scale");
    if (scheme.weight.granularity == Granularity::kPerTensor) {
      weight.scale = weight.scale.reshape({1, 1});
    }
    if (format_of(scheme) != kPack) {
      weight.codes = read(module + ".weight");
      if (has_zero_point) {
        weight.zero_point = read(module + ".weight_zero_point");
      }
      return weight;
    }
    const at::Tensor shape = read(module + ".weight_shape");
    const int bits = scheme.weight.bits;
    weight.codes = unpack_words(read(module + ".weight_packed"), bits, shape[1].item<int64_t>());
    if (has_zero_point) {
      const at::Tensor packed = read(module + ".weight_zero_point").t();
      weight.zero_point = unpack_words(packed, bits, shape[0].item<int64_t>()).t().contiguous();
    }
    return weight;
  }

  json quantization_config(const ExportModel& model) const override;
};

json CompressedTensorsLayout::quantization_config(const ExportModel& model) const {
  std::vector<std::pair<Scheme, std::vector<std::string>>> groups;  // in order of first use
  std::vector<std::string> plain;
  for (const std::string& module : linear_modules(model.config.transformer)) {
    const auto found = model.schemes.find(module);
    if (found == model.schemes.end()) {
      plain.push_back(module);
      continue;
    }
    const auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& known) {
      return known.first == found->second;
    });
    if (group == groups.end()) {
      groups.push_back({found->second, {module}});
    } else {
      group->second.push_back(module);
    }
  }
  json config_groups = json::object();
  for (size_t i = 0; i < groups.size(); ++i) {
    const auto& [scheme, modules] = groups[i];
    config_groups["group_" + std::to_string(i)] = {
        {"targets", groups.size() == 1 ? json::array({"Linear"}) : json(modules)},
        {"weights", arguments(scheme.weight, false)},
        {"input_activations", scheme.activation ? arguments(*scheme.activation, true) : json()},
        {"output_activations", nullptr},
        {"format", format_of(scheme)}};
  }
  const bool is_uniform = std::all_of(groups.begin(), groups.end(), [&](const auto& group) {
    return std::string_view(format_of(group.first)) == format_of(groups.front().first);
  });
  return {{"quant_method", "compressed-tensors"},
          {"format", is_uniform ? format_of(groups.front().first) : "mixed-precision"},
          {"quantization_status", "compressed"},
          {"config_groups", config_groups},
          {"ignore", plain},
          {"kv_cache_scheme", nullptr},
          {"global_compression_ratio", nullptr}};
}

}  // namespace

std::unique_ptr<WeightLayout> compressed_tensors_layout() {
  return std::make_unique<CompressedTensorsLayout>();
}

}  // namespace narrowgauge::exports
