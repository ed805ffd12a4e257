#include "export/gguf_file.h"

#include <ATen/ops/empty.h>

#include <cstring>

namespace narrowgauge::exports {
namespace {

bool is_plain(GgmlType type) { return ggml_block(type).elements == 1; }

// What GgufFile::tensor returns for it: dtype and sizes.
std::pair<at::ScalarType, std::vector<int64_t>> tensor_form(const GgufTensorInfo& info) {
  if (is_plain(info.type)) {
    return {ggml_scalar_type(info.type), info.sizes};
  }
  const GgmlBlock block = ggml_block(info.type);
  const int64_t row_bytes = info.sizes.back() / block.elements * block.bytes;
  return {at::kByte, {c10::multiply_integers(info.sizes) / info.sizes.back(), row_bytes}};
}

}  // namespace

at::ScalarType ggml_scalar_type(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return at::kFloat;
    case GgmlType::kF16:
      return at::kHalf;
    case GgmlType::kBf16:
      return at::kBFloat16;
    default:
      TORCH_CHECK(false, "expected F32, F16 or BF16, got ", ggml_type_name(type));
  }
}

GgufFile GgufFile::open(const std::filesystem::path& path) {
  GgufFile file;
  file.path_ = path;
  file.file_ = std::make_shared<data::MappedFile>(path.string());
  const auto bytes = file.file_->bytes();
  file.header_ = parse_gguf_header({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                                   bytes.size(), path.string());
  for (size_t i = 0; i < file.header_.tensors.size(); ++i) {
    file.index_[file.header_.tensors[i].name] = i;
  }
  return file;
}

const GgufTensorInfo& GgufFile::info(const std::string& name) const {
  const auto found = index_.find(name);
  TORCH_CHECK(found != index_.end(), path_.string(), ": expected a tensor '", name,
              "', the file has ", index_.size(), " others");
  return header_.tensors[found->second];
}

at::Tensor GgufFile::tensor(const std::string& name) const {
  const GgufTensorInfo& found = info(name);
  const auto [dtype, sizes] = tensor_form(found);
  at::Tensor copy = at::empty(sizes, at::TensorOptions().dtype(dtype));
  std::memcpy(copy.mutable_data_ptr(), file_->bytes().data() + header_.data_offset + found.offset,
              copy.nbytes());
  return copy;
}

GgufWriter::GgufWriter(const std::filesystem::path& path, const GgufMetadata& metadata,
                       std::vector<GgufTensorInfo> tensors)
    : path_(path), file_(path) {
  data_bytes_ = lay_out_gguf_tensors(tensors);
  const std::string header = gguf_header_bytes(metadata, tensors);
  file_.write_at(0, header.data(), header.size());
  data_offset_ = header.size();
  if (data_bytes_ > 0) {  // the padding behind the last tensor belongs to the file
    file_.write_at(data_offset_ + data_bytes_ - 1, "", 1);
  }
  for (GgufTensorInfo& info : tensors) {
    missing_.emplace(info.name, std::move(info));
  }
}

void GgufWriter::write(const std::string& name, const at::Tensor& tensor) {
  const auto found = missing_.find(name);
  TORCH_CHECK(found != missing_.end(), path_.string(), ": tensor '", name,
              "' was not announced or is written twice");
  const auto [dtype, sizes] = tensor_form(found->second);
  TORCH_CHECK(tensor.scalar_type() == dtype && tensor.sizes() == at::IntArrayRef(sizes),
              path_.string(), ": tensor '", name, "': expected ", dtype, " ",
              at::IntArrayRef(sizes), ", got ", tensor.scalar_type(), " ", tensor.sizes());
  const at::Tensor bytes = tensor.detach().to(at::kCPU).contiguous();
  file_.write_at(data_offset_ + found->second.offset, bytes.const_data_ptr(), bytes.nbytes());
  missing_.erase(found);
}

void GgufWriter::commit() {
  TORCH_CHECK(missing_.empty(), path_.string(), ": ", missing_.size(),
              " announced tensors were not written, '", missing_.begin()->first, "' first");
  file_.commit();
}

}  // namespace narrowgauge::exports
