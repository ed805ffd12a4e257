#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/durable_file.h"
#include "checkpoint/safetensors_header.h"

namespace narrowgauge::checkpoint {

// Throws c10::Error for a dtype without a safetensors name.
std::string safetensors_dtype_name(at::ScalarType dtype);
// REQUIRES: safetensors_element_size(name) has a value.
at::ScalarType safetensors_scalar_type(const std::string& name);

// A safetensors file, mapped; nothing but the header is read before a tensor is asked for.
//
// The file is untrusted: open() checks all of it that is not data (see safetensors_header.h) and
// throws std::runtime_error. A file truncated by someone else while it is mapped raises SIGBUS.
// Const methods are thread-safe. Copies share the mapping.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& path);

  const std::filesystem::path& path() const;
  std::vector<std::string> names() const;  // sorted
  bool contains(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const;

  // Of the file, without touching data. Throw c10::Error naming the file where there is no `name`,
  // as do the two below.
  at::ScalarType dtype(const std::string& name) const;
  const std::vector<int64_t>& sizes(const std::string& name) const;

  // A CPU tensor on the mapping, which it keeps alive; writes to it stay private to this process.
  // Where the file does not align the data to the element size, a copy.
  at::Tensor tensor(const std::string& name) const;

  // Rows [begin, end) of the first dimension; only their pages are read.
  at::Tensor rows(const std::string& name, int64_t begin, int64_t end) const;

 private:
  struct Mapping;

  const SafetensorsEntry& entry(const std::string& name) const;
  at::Tensor view(const SafetensorsEntry& entry, uint64_t offset,
                  const std::vector<int64_t>& sizes) const;

  std::shared_ptr<const Mapping> mapping_;
  std::shared_ptr<const SafetensorsHeader> header_;
};

struct SafetensorsSpec {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> sizes;
};

// Writes a file tensor by tensor, so that only one is in memory. Nothing appears under `path`
// before commit(); see DurableFile. Data is laid out by falling element size, which aligns every
// tensor, and in the order of `specs` within a size: the same input gives the same bytes.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<SafetensorsSpec>& specs,
                    const std::map<std::string, std::string>& metadata);

  // In any order, each once. `tensor` has the dtype and sizes announced; any device and strides.
  void write(const std::string& name, const at::Tensor& tensor);

  // Throws c10::Error when a tensor is missing.
  void commit();

 private:
  std::filesystem::path path_;
  DurableFile file_;
  uint64_t data_offset_ = 0;
  std::map<std::string, SafetensorsEntry> missing_;
};

void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace narrowgauge::checkpoint
