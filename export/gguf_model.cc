#include "export/gguf_model.h"

#include <ATen/ops/index_select.h>
#include <ATen/ops/isinf.h>
#include <ATen/ops/tensor.h>

#include <string>
#include <vector>

#include "export/bit_equality.h"
#include "export/gguf_architecture.h"
#include "export/gguf_blocks.h"
#include "export/gguf_file.h"
#include "export/gguf_tokenizer.h"

namespace narrowgauge::exports {
namespace {

namespace fs = std::filesystem;
using quantization::Grid;
using quantization::QuantizedTensor;
using quantization::Scheme;

// Divides the frequencies of the rotary embedding; llama.cpp looks for it by this name.
constexpr const char* kRopeFactors = "rope_freqs.weight";

// One tensor of the file and where it comes from.
struct Entry {
  ModelTensor tensor;
  const Scheme* scheme;  // null: plain
  GgufTensorInfo info;
  std::vector<int64_t> row_order;  // see gguf_row_order
};

at::Tensor reorder(const at::Tensor& rows, const std::vector<int64_t>& order) {
  return order.empty() ? rows : rows.index_select(0, at::tensor(order).to(rows.device()));
}

std::vector<int64_t> inverse(const std::vector<int64_t>& order) {
  std::vector<int64_t> places(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    places[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  }
  return places;
}

std::vector<Entry> plan(const ExportModel& model, GgmlType matrices) {
  const nn::TransformerConfig& shape = model.config.transformer;
  std::vector<Entry> entries;
  for (ModelTensor& tensor : model_tensors(shape)) {
    const auto found =
        tensor.module.empty() ? model.schemes.end() : model.schemes.find(tensor.module);
    const Scheme* scheme = found == model.schemes.end() ? nullptr : &found->second;
    const GgmlType type = scheme != nullptr          ? *ggml_type_of(*scheme)
                          : tensor.sizes.size() == 1 ? GgmlType::kF32
                                                     : matrices;
    GgufTensorInfo info{gguf_tensor_name(tensor.name), tensor.sizes, type, 0};
    std::vector<int64_t> order = gguf_row_order(shape, tensor.name);
    entries.push_back({std::move(tensor), scheme, std::move(info), std::move(order)});
  }
  return entries;
}

at::Tensor plain_values(const ExportModel& model, const Entry& entry) {
  const at::Tensor values = model.plain(entry.tensor.name).detach().to(at::kCPU);
  TORCH_CHECK(values.sizes() == at::IntArrayRef(entry.tensor.sizes), entry.tensor.name,
              ": expected sizes ", at::IntArrayRef(entry.tensor.sizes), ", got ", values.sizes());
  const at::Tensor written = values.to(model.dtype).to(ggml_scalar_type(entry.info.type));
  TORCH_CHECK(entry.info.type != GgmlType::kF16 || !at::isinf(written).any().item<bool>(),
              entry.tensor.name, ": a value exceeds the range of F16; choose --dtype bfloat16");
  return reorder(written, entry.row_order);
}

GgufBlocks quantized_blocks(const ExportModel& model, const Entry& entry) {
  const QuantizedTensor weight = model.quantized(entry.tensor.module);
  return {reorder(weight.codes, entry.row_order), reorder(weight.scale, entry.row_order)};
}

at::Tensor rope_factors(const ExportModel& model) {
  return at::tensor(gguf_rope_factors(model.config.transformer));
}

GgufMetadata file_metadata(const ExportModel& model, const data::Tokenizer* tokenizer,
                           GgmlType matrices) {
  GgufMetadata metadata = gguf_architecture_metadata(model.config.transformer);
  const GgmlType type =
      model.schemes.empty() ? matrices : *ggml_type_of(model.schemes.begin()->second);
  metadata.emplace_back("general.file_type", gguf_file_type(type));
  for (auto& pair : gguf_tokenizer_metadata(tokenizer, model.config.transformer.vocab_size)) {
    metadata.push_back(std::move(pair));
  }
  return metadata;
}

void report_progress(const ExportProgress& progress, size_t done, size_t total, const char* stage) {
  if (progress) {
    progress(static_cast<double>(done) / static_cast<double>(total), stage);
  }
}

ExportReport prove(const fs::path& path, const ExportModel& model,
                   const std::vector<Entry>& entries, const ExportProgress& progress) {
  const GgufFile file = GgufFile::open(path);
  ExportReport report;
  report.bytes = fs::file_size(path);
  for (size_t i = 0; i < entries.size(); ++i) {
    report_progress(progress, i, entries.size(), "reading back");
    const Entry& entry = entries[i];
    const at::Tensor written = file.tensor(entry.info.name);
    if (entry.scheme == nullptr) {
      require_bit_equal(plain_values(model, entry), written, entry.tensor.name);
      ++report.plain_tensors;
      continue;
    }
    const GgufBlocks expected = quantized_blocks(model, entry);
    const GgufBlocks actual = unpack_gguf_blocks(entry.info.type, written);
    require_bit_equal(expected.codes, actual.codes, entry.tensor.name + " codes");
    require_bit_equal(expected.scale, actual.scale, entry.tensor.name + " scale");
    ++report.quantized_weights;
    report.codes += expected.codes.numel();
    report.scales += expected.scale.numel();
  }
  return report;
}

}  // namespace

std::optional<GgmlType> ggml_type_of(const Scheme& scheme) {
  if (scheme.activation) {
    return std::nullopt;
  }
  switch (scheme.weight.grid) {
    case Grid::kGgufQ4_0:
      return GgmlType::kQ4_0;
    case Grid::kGgufQ8_0:
      return GgmlType::kQ8_0;
    default:
      return std::nullopt;
  }
}

void check_gguf(const ExportModel& model) {
  check_export_model(model);
  for (const auto& [module, scheme] : model.schemes) {
    TORCH_CHECK(ggml_type_of(scheme).has_value(), "--format gguf cannot hold ", module,
                " with the numbers it was trained with: scheme ", scheme.name, " is ",
                describe(scheme.weight),
                ", GGUF's Q4_0 and Q8_0 take other scales and codes; train or quantize with "
                "gguf-q4_0 or gguf-q8_0");
  }
}

TensorReader exported_gguf_values(const fs::path& path, const ExportModel& model) {
  const auto file = std::make_shared<const GgufFile>(GgufFile::open(path));
  return [file, shape = model.config.transformer, schemes = model.schemes,
          dtype = model.dtype](const std::string& name) {
    at::Tensor rows = file->tensor(gguf_tensor_name(name));
    const auto scheme = schemes.find(module_of(name));
    if (!module_of(name).empty() && scheme != schemes.end()) {
      const GgufBlocks blocks = unpack_gguf_blocks(*ggml_type_of(scheme->second), rows);
      QuantizedTensor weight;
      weight.codes = blocks.codes;
      weight.scale = blocks.scale;
      weight.spec = scheme->second.weight;
      rows = quantization::dequantize(weight, dtype);
    }
    const std::vector<int64_t> order = gguf_row_order(shape, name);
    return reorder(rows, inverse(order)).to(dtype);
  };
}

ExportReport write_gguf(const fs::path& path, const ExportModel& model,
                        const data::Tokenizer* tokenizer, GgmlType matrices,
                        const ExportProgress& progress) {
  check_gguf(model);
  TORCH_CHECK(ggml_block(matrices).elements == 1, "expected F32, F16 or BF16 for plain matrices");
  const std::vector<Entry> entries = plan(model, matrices);
  std::vector<GgufTensorInfo> infos;
  for (const Entry& entry : entries) {
    infos.push_back(entry.info);
  }
  const at::Tensor factors = rope_factors(model);
  if (factors.numel() > 0) {
    infos.push_back({kRopeFactors, factors.sizes().vec(), GgmlType::kF32, 0});
  }
  const fs::path unproven = fs::path(path).concat(".unproven");
  GgufWriter writer(unproven, file_metadata(model, tokenizer, matrices), infos);
  for (size_t i = 0; i < entries.size(); ++i) {
    report_progress(progress, i, entries.size(), "writing");
    const Entry& entry = entries[i];
    writer.write(entry.info.name,
                 entry.scheme == nullptr
                     ? plain_values(model, entry)
                     : pack_gguf_blocks(entry.info.type, quantized_blocks(model, entry)));
  }
  if (factors.numel() > 0) {
    writer.write(kRopeFactors, factors);
  }
  writer.commit();
  try {
    const ExportReport report = prove(unproven, model, entries, progress);
    fs::rename(unproven, path);
    checkpoint::sync_directory(path.has_parent_path() ? path.parent_path() : fs::path("."));
    return report;
  } catch (...) {
    std::error_code ignored;
    fs::remove(unproven, ignored);
    throw;
  }
}

}  // namespace narrowgauge::exports
