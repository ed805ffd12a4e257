#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/durable_file.h"
#include "data/mapped_file.h"
#include "export/gguf_header.h"

namespace narrowgauge::exports {

// A GGUF file, mapped; the header is checked as untrusted (see gguf_header.h), data is read when
// asked for. Const methods are thread-safe.
class GgufFile {
 public:
  // Throws std::runtime_error for what is missing or damaged.
  static GgufFile open(const std::filesystem::path& path);

  const GgufMetadata& metadata() const { return header_.metadata; }
  const std::vector<GgufTensorInfo>& tensors() const { return header_.tensors; }

  // Throws c10::Error naming the file where there is no `name`, as does the one below.
  const GgufTensorInfo& info(const std::string& name) const;

  // A copy of the tensor: of a plain type in its dtype and sizes; of a block type its bytes, uint8
  // [rows, bytes of a row] (see gguf_blocks.h).
  at::Tensor tensor(const std::string& name) const;

 private:
  std::filesystem::path path_;
  std::shared_ptr<const data::MappedFile> file_;
  GgufHeader header_;
  std::map<std::string, size_t> index_;
};

// Writes a file tensor by tensor, so that only one is in memory. Nothing appears under `path`
// before commit(); see checkpoint::DurableFile.
class GgufWriter {
 public:
  // `tensors` in the order of the file; offsets are the writer's to give.
  GgufWriter(const std::filesystem::path& path, const GgufMetadata& metadata,
             std::vector<GgufTensorInfo> tensors);

  // In any order, each once; the tensor as GgufFile::tensor returns it, on any device.
  void write(const std::string& name, const at::Tensor& tensor);

  // Throws c10::Error when a tensor is missing.
  void commit();

 private:
  std::filesystem::path path_;
  checkpoint::DurableFile file_;
  uint64_t data_offset_ = 0;
  uint64_t data_bytes_ = 0;
  std::map<std::string, GgufTensorInfo> missing_;
};

// Of a plain type; throws c10::Error for the others.
at::ScalarType ggml_scalar_type(GgmlType type);

}  // namespace narrowgauge::exports
