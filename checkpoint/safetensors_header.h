#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace narrowgauge::checkpoint {

// What a safetensors file says of one tensor. Offsets are bytes from the end of the header.
struct SafetensorsEntry {
  std::string dtype;  // as written: F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E8M0 I64 I32 I16 I8 U8 BOOL
  std::vector<int64_t> sizes;  // [] is a scalar; zero sizes are valid
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;  // __metadata__; empty where there is none
  uint64_t data_offset = 0;                     // of the first data byte in the file
};

// The format's own limit, so that a lying length allocates nothing.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// Bytes of one element, or nothing for a dtype this program does not know.
std::optional<uint64_t> safetensors_element_size(std::string_view dtype);

// Parses and checks the start of a file of `file_size` bytes, of which `bytes` holds at least the
// header (a mapping of the whole file, say). Afterwards every tensor lies inside the file, its
// offsets agree with dtype and shape, and the tensors tile the data without gap or overlap.
// Throws std::runtime_error naming `source`, the tensor and both numbers.
SafetensorsHeader parse_safetensors_header(std::string_view bytes, uint64_t file_size,
                                           const std::string& source);

// Gives tensors their places, `begin` and `end`, and sorts them by these: by falling element size,
// which aligns every tensor, and in the order given within a size. Returns the bytes of data.
// REQUIRES: dtypes with an element size; sizes whose product fits.
uint64_t lay_out_tensors(std::vector<std::pair<std::string, SafetensorsEntry>>& tensors);

// The length prefix and JSON of a header, padded so that data starts 8-byte aligned. The tensors
// are listed in the order of their offsets.
std::string safetensors_header_bytes(
    const std::vector<std::pair<std::string, SafetensorsEntry>>& tensors,
    const std::map<std::string, std::string>& metadata);

}  // namespace narrowgauge::checkpoint
