#include "quantization/quantized_model.h"

#include <c10/util/Exception.h>

#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/strict_json.h"
#include "quantization/spec_json.h"

namespace narrowgauge::quantization {
namespace {

constexpr const char* kFormat = "narrowgauge-quantized-1";

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

void append(NamedTensors& tensors, const std::string& name, const QuantizedTensor& tensor) {
  check_quantized_tensor(tensor);
  tensors.emplace_back(name + ".codes", tensor.codes);
  tensors.emplace_back(name + ".scale", tensor.scale);
  if (tensor.zero_point) {
    tensors.emplace_back(name + ".zero_point", *tensor.zero_point);
  }
  if (tensor.outer_scale) {
    tensors.emplace_back(name + ".outer_scale", *tensor.outer_scale);
  }
}

// Hands out the tensors of a file by name and knows which were not asked for.
class Remaining {
 public:
  explicit Remaining(const checkpoint::SafetensorsFile& file) : file_(file) {
    for (const std::string& name : file.names()) {
      names_.insert(name);
    }
  }

  std::optional<at::Tensor> take(const std::string& name) {
    if (names_.erase(name) == 0) {
      return std::nullopt;
    }
    return file_.tensor(name);
  }

  at::Tensor require(const std::string& name) {
    const auto tensor = take(name);
    if (!tensor) {
      throw std::runtime_error(file_.path().string() + ": expected tensor " + name);
    }
    return *tensor;
  }

  const std::set<std::string>& names() const { return names_; }

 private:
  const checkpoint::SafetensorsFile& file_;
  std::set<std::string> names_;
};

QuantizedWeight read_weight(Remaining& remaining, const std::string& name,
                            const nlohmann::json& json, const std::string& source) {
  if (!json.is_object() || json.size() != 2 || !json.contains("scheme")) {
    throw std::runtime_error(source + ": expected scheme and dtype");
  }
  QuantizedWeight weight;
  weight.scheme = scheme_from_json(json["scheme"], source + ".scheme");
  weight.dtype =
      dtype_by_name(checkpoint::json_value<std::string>(json, "dtype", source), source + ".dtype");
  weight.tensor.codes = remaining.require(name + ".codes");
  weight.tensor.scale = remaining.require(name + ".scale");
  weight.tensor.zero_point = remaining.take(name + ".zero_point");
  weight.tensor.outer_scale = remaining.take(name + ".outer_scale");
  weight.tensor.spec = weight.scheme.weight;
  try {
    TORCH_CHECK(at::isFloatingType(weight.dtype), "expected a floating dtype");
    check_quantized_tensor(weight.tensor);
  } catch (const c10::Error& error) {
    throw std::runtime_error(source + ": " + error.what_without_backtrace());
  }
  return weight;
}

std::string metadata_of(const checkpoint::SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) {
    throw std::runtime_error(file.path().string() + ": expected " + key + " in the metadata; " +
                             "was it written by `narrowgauge quantize` or a run with qat?");
  }
  return found->second;
}

}  // namespace

void write_quantized_model(const std::filesystem::path& directory, const QuantizedModel& model) {
  NamedTensors tensors;
  nlohmann::ordered_json weights = nlohmann::ordered_json::object();
  for (const auto& [name, weight] : model.weights) {
    TORCH_CHECK(weight.tensor.spec == weight.scheme.weight, "expected ", name,
                " to be written as its scheme says");
    append(tensors, name, weight.tensor);
    weights[name] = {{"scheme", to_json(weight.scheme)}, {"dtype", dtype_name(weight.dtype)}};
  }
  for (const auto& [name, tensor] : model.plain) {
    tensors.emplace_back(name, tensor);
  }
  std::filesystem::create_directories(directory);
  checkpoint::write_safetensors(directory / kQuantizedModelFile, tensors,
                                {{"format", kFormat}, {"weights", weights.dump()}});
}

QuantizedModel read_quantized_model(const std::filesystem::path& directory) {
  const auto file = checkpoint::SafetensorsFile::open(directory / kQuantizedModelFile);
  const std::string source = file.path().string();
  const std::string format = metadata_of(file, "format");
  if (format != kFormat) {
    throw std::runtime_error(source + ": expected format " + kFormat + ", got " + format);
  }
  const nlohmann::json weights =
      checkpoint::parse_strict_json(metadata_of(file, "weights"), source + ": weights");
  if (!weights.is_object()) {
    throw std::runtime_error(source + ": expected an object under weights");
  }
  Remaining remaining(file);
  QuantizedModel model;
  for (const auto& [name, json] : weights.items()) {
    std::string where = source;
    where += ": ";
    where += name;
    model.weights.emplace(name, read_weight(remaining, name, json, where));
  }
  for (const std::string& name : remaining.names()) {
    const at::Tensor tensor = file.tensor(name);
    if (!at::isFloatingType(tensor.scalar_type())) {
      throw std::runtime_error(source + ": expected a weight that " + name + " belongs to");
    }
    model.plain.emplace(name, tensor);
  }
  return model;
}

}  // namespace narrowgauge::quantization
