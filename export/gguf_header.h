#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "export/ggml_type.h"

namespace narrowgauge::exports {

// The values of GGUF metadata that model files use. Every other kind of the format (8- and 16-bit
// integers, arrays of arrays) is read past, checked and dropped.
using GgufValue =
    std::variant<uint32_t, int32_t, float, bool, std::string, uint64_t, int64_t, double,
                 std::vector<std::string>, std::vector<float>, std::vector<int32_t>>;

// In file order; keys are unique.
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

// Null where there is no such key.
const GgufValue* find_gguf_value(const GgufMetadata& metadata, std::string_view key);

struct GgufTensorInfo {
  std::string name;
  std::vector<int64_t>
      sizes;  // as torch counts: the last is contiguous (the file has them reversed)
  GgmlType type = GgmlType::kF32;
  uint64_t offset = 0;  // from GgufHeader::data_offset
};

struct GgufHeader {
  GgufMetadata metadata;
  std::vector<GgufTensorInfo> tensors;  // in file order
  uint64_t data_offset = 0;             // of the first data byte in the file
};

// Data starts, and each tensor in it, at multiples of this; a file may say otherwise in
// general.alignment.
inline constexpr uint64_t kGgufAlignment = 32;

// Bytes of a tensor. Throws std::invalid_argument for sizes that are negative, too many (ggml has
// four) or overflow, and for rows that are no whole number of blocks.
uint64_t gguf_tensor_bytes(GgmlType type, const std::vector<int64_t>& sizes,
                           const std::string& name);

// Gives each tensor the offset that follows the one before it, and returns the bytes of all data,
// padding included. Throws as gguf_tensor_bytes.
uint64_t lay_out_gguf_tensors(std::vector<GgufTensorInfo>& tensors);

// The bytes of a file before its data. Throws std::invalid_argument for a name or key used twice.
std::string gguf_header_bytes(const GgufMetadata& metadata,
                              const std::vector<GgufTensorInfo>& tensors);

// Parses and checks the start of an untrusted file of `file_size` bytes, of which `bytes` holds at
// least the header. Afterwards every tensor lies inside the file, aligned and without overlap, and
// nothing that the file claimed was allocated before the bytes for it were seen.
// Throws std::runtime_error naming `source` and what is wrong.
GgufHeader parse_gguf_header(std::string_view bytes, uint64_t file_size, const std::string& source);

}  // namespace narrowgauge::exports
