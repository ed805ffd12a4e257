#include "export/quantized_directory.h"

#include <ATen/ops/empty.h>

#include <map>

#include "checkpoint/safetensors.h"
#include "checkpoint/strict_json.h"
#include "export/bit_equality.h"
#include "export/blockwise_fp8.h"

namespace narrowgauge::exports {
namespace {

namespace fs = std::filesystem;
using quantization::QuantizedTensor;
using quantization::Scheme;

constexpr size_t kMaxListed = 10;  // of reasons in one error

// The scheme of a tensor that is a quantized weight, or null.
const Scheme* scheme_of(const ExportModel& model, const ModelTensor& tensor) {
  const auto found = model.schemes.find(tensor.module);
  return tensor.module.empty() || found == model.schemes.end() ? nullptr : &found->second;
}

at::Tensor without_values(const at::Tensor& tensor) {
  return at::empty(tensor.sizes(), tensor.options().device(at::kMeta));
}

QuantizedTensor without_values(const QuantizedTensor& weight) {
  QuantizedTensor shape = weight;
  shape.codes = without_values(weight.codes);
  shape.scale = without_values(weight.scale);
  if (weight.zero_point) {
    shape.zero_point = without_values(*weight.zero_point);
  }
  if (weight.outer_scale) {
    shape.outer_scale = without_values(*weight.outer_scale);
  }
  return shape;
}

void check_sizes(const at::Tensor& actual, const ModelTensor& tensor) {
  TORCH_CHECK(actual.sizes() == at::IntArrayRef(tensor.sizes), tensor.name, ": expected sizes ",
              at::IntArrayRef(tensor.sizes), ", got ", actual.sizes());
}

std::vector<checkpoint::SafetensorsSpec> announced_tensors(const ExportModel& model,
                                                           const WeightLayout& layout) {
  std::vector<checkpoint::SafetensorsSpec> specs;
  for (const ModelTensor& tensor : model_tensors(model.config.transformer)) {
    const Scheme* scheme = scheme_of(model, tensor);
    if (scheme == nullptr) {
      specs.push_back({tensor.name, model.dtype, tensor.sizes});
      continue;
    }
    const QuantizedTensor weight = model.quantized(tensor.module);
    check_sizes(weight.codes, tensor);
    for (const NamedTensor& part :
         layout.pack(tensor.module, *scheme, without_values(weight), model.dtype)) {
      specs.push_back({part.name, part.tensor.scalar_type(), part.tensor.sizes().vec()});
    }
  }
  return specs;
}

at::Tensor plain_tensor(const ExportModel& model, const ModelTensor& tensor) {
  const at::Tensor plain = model.plain(tensor.name).detach();
  check_sizes(plain, tensor);
  return plain.to(model.dtype);
}

std::string config_text(const ExportModel& model, const WeightLayout& layout) {
  checkpoint::HuggingFaceConfig config = model.config;
  config.dtype = model.dtype == at::kFloat  ? "float32"
                 : model.dtype == at::kHalf ? "float16"
                                            : "bfloat16";
  nlohmann::json root =
      checkpoint::parse_strict_json(checkpoint::huggingface_config_json(config), "config.json");
  root["quantization_config"] = layout.quantization_config(model);
  return root.dump(2) + "\n";
}

// Every tensor of the directory, whatever the shard; what the index says is compared by names.
class WrittenTensors {
 public:
  explicit WrittenTensors(const fs::path& directory) {
    for (const auto& entry : fs::directory_iterator(directory)) {
      if (entry.path().extension() == ".safetensors") {
        const auto file = checkpoint::SafetensorsFile::open(entry.path());
        bytes_ += entry.file_size();
        for (const std::string& name : file.names()) {
          TORCH_CHECK(file_of_.emplace(name, file).second, "tensor '", name, "' is in two files");
        }
      }
    }
  }

  at::Tensor read(const std::string& name) const {
    const auto found = file_of_.find(name);
    TORCH_CHECK(found != file_of_.end(), "tensor '", name, "' was not written");
    return found->second.tensor(name);
  }

  uint64_t bytes() const { return bytes_; }

 private:
  std::map<std::string, checkpoint::SafetensorsFile> file_of_;
  uint64_t bytes_ = 0;
};

ExportReport prove(const fs::path& directory, const ExportModel& model, const WeightLayout& layout,
                   const ExportProgress& progress) {
  const WrittenTensors written(directory);
  const TensorReader read = [&](const std::string& name) { return written.read(name); };
  ExportReport report;
  report.bytes = written.bytes();
  const std::vector<ModelTensor> tensors = model_tensors(model.config.transformer);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (progress) {
      progress(static_cast<double>(i) / static_cast<double>(tensors.size()), "reading back");
    }
    const Scheme* scheme = scheme_of(model, tensors[i]);
    if (scheme == nullptr) {
      require_bit_equal(plain_tensor(model, tensors[i]), read(tensors[i].name), tensors[i].name);
      ++report.plain_tensors;
      continue;
    }
    const QuantizedTensor weight = model.quantized(tensors[i].module);
    require_bit_equal(weight, layout.unpack(tensors[i].module, *scheme, read), tensors[i].name);
    ++report.quantized_weights;
    report.codes += weight.codes.numel();
    report.scales += weight.scale.numel();
  }
  return report;
}

}  // namespace

void check_layout(const ExportModel& model, const WeightLayout& layout) {
  check_export_model(model);
  TORCH_CHECK(!model.schemes.empty(), "--format ", layout.name(),
              " writes quantized weights and the model has none; train with qat.scheme, or run "
              "narrowgauge quantize first");
  std::string reasons;
  size_t count = 0;
  for (const auto& [module, scheme] : model.schemes) {
    if (const auto reason = layout.refusal(module, scheme)) {
      if (++count <= kMaxListed) {
        reasons += "\n  " + module + " (" + scheme.name + "): " + *reason;
      }
    }
  }
  TORCH_CHECK(count == 0, "--format ", layout.name(), " cannot hold ", count,
              " weights with the numbers they were trained with:", reasons,
              count > kMaxListed ? "\n  ..." : "");
}

ExportReport write_quantized_directory(const fs::path& directory, const ExportModel& model,
                                       const WeightLayout& layout,
                                       const std::vector<checkpoint::CopiedFile>& copied_files,
                                       const ExportProgress& progress, int64_t max_shard_bytes) {
  check_layout(model, layout);
  checkpoint::ModelDirectoryContents contents;
  contents.texts = {
      {"config.json", config_text(model, layout)},
      {"generation_config.json", checkpoint::huggingface_generation_config_json(model.config)},
  };
  contents.copied_files = copied_files;
  contents.tensors = announced_tensors(model, layout);
  contents.metadata = layout.metadata(model);
  contents.max_shard_bytes = max_shard_bytes;
  const std::vector<ModelTensor> tensors = model_tensors(model.config.transformer);
  const auto produce = [&](const checkpoint::TensorSink& sink) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (progress) {
        progress(static_cast<double>(i) / static_cast<double>(tensors.size()), "writing");
      }
      const Scheme* scheme = scheme_of(model, tensors[i]);
      if (scheme == nullptr) {
        sink(tensors[i].name, plain_tensor(model, tensors[i]));
        continue;
      }
      for (const NamedTensor& part : layout.pack(tensors[i].module, *scheme,
                                                 model.quantized(tensors[i].module), model.dtype)) {
        sink(part.name, part.tensor);
      }
    }
  };
  ExportReport report;
  checkpoint::write_model_directory(directory, contents, produce, [&](const fs::path& temporary) {
    report = prove(temporary, model, layout, progress);
  });
  return report;
}

TensorReader exported_values(const fs::path& directory, const ExportModel& model,
                             std::shared_ptr<const WeightLayout> layout) {
  const auto written = std::make_shared<const WrittenTensors>(directory);
  return [written, schemes = model.schemes, dtype = model.dtype,
          layout = std::move(layout)](const std::string& name) {
    const std::string module = module_of(name);
    const auto found = schemes.find(module);
    const TensorReader read = [&](const std::string& part) { return written->read(part); };
    return found == schemes.end()
               ? read(name)
               : dequantize_weight(layout->unpack(module, found->second, read), dtype);
  };
}

}  // namespace narrowgauge::exports
