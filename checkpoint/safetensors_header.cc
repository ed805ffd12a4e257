// A safetensors file: u64 little-endian length N; N bytes of JSON starting with '{', padded with
// spaces; then raw little-endian data.
//   {"__metadata__": {string: string}, NAME: {"dtype": D, "shape": [...], "data_offsets": [b, e]}}
// Offsets count from the end of the header; the tensors cover the data exactly.
#include "checkpoint/safetensors_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr uint64_t kPrefixBytes = 8;

[[noreturn]] void fail(const std::string& source, const std::string& what) {
  throw std::runtime_error(source + ": " + what);
}

uint64_t header_length(std::string_view bytes, uint64_t file_size, const std::string& source) {
  if (file_size < kPrefixBytes || bytes.size() < kPrefixBytes) {
    fail(source, "expected at least 8 bytes of safetensors header length, got a file of " +
                     std::to_string(file_size) + "; it is truncated or not a safetensors file");
  }
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kPrefixBytes);
  if (length > kMaxSafetensorsHeaderBytes) {
    fail(source, "expected a safetensors header of at most " +
                     std::to_string(kMaxSafetensorsHeaderBytes) + " bytes, the file claims " +
                     std::to_string(length) + "; it is damaged or not a safetensors file");
  }
  if (length > file_size - kPrefixBytes || length > bytes.size() - kPrefixBytes) {
    fail(source, "the safetensors header claims " + std::to_string(length) +
                     " bytes, the file has " + std::to_string(file_size - kPrefixBytes) +
                     " after the length; it is truncated");
  }
  return length;
}

std::vector<int64_t> parse_sizes(const json& entry, const std::string& where) {
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) {
    fail(where, "expected an array 'shape'");
  }
  std::vector<int64_t> sizes;
  for (const json& size : *shape) {
    // nlohmann holds what is written without a sign as unsigned, so -0 and -1 are refused.
    if (!size.is_number_unsigned() || size.get<uint64_t>() > uint64_t{INT64_MAX}) {
      fail(where, "expected sizes from 0 to 2^63-1, got " + size.dump() + " in 'shape'");
    }
    sizes.push_back(size.get<int64_t>());
  }
  return sizes;
}

// Bytes of the tensor. Zero sizes count as one in the overflow check, since strides multiply them.
uint64_t byte_count(const SafetensorsEntry& entry, uint64_t element_size,
                    const std::string& where) {
  int64_t bound = static_cast<int64_t>(element_size);
  bool is_empty = false;
  for (const int64_t size : entry.sizes) {
    is_empty |= size == 0;
    if (__builtin_mul_overflow(bound, std::max<int64_t>(size, 1), &bound)) {
      fail(where, "its shape needs more than 2^63 bytes");
    }
  }
  return is_empty ? 0 : static_cast<uint64_t>(bound);
}

void parse_offsets(const json& value, SafetensorsEntry& entry, const std::string& where) {
  const auto offsets = value.find("data_offsets");
  if (offsets == value.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    fail(where, "expected 'data_offsets' with two numbers of at least 0");
  }
  entry.begin = (*offsets)[0].get<uint64_t>();
  entry.end = (*offsets)[1].get<uint64_t>();
}

SafetensorsEntry parse_entry(const json& value, uint64_t data_size, const std::string& where) {
  if (!value.is_object() || value.size() != 3) {
    fail(where, "expected exactly 'dtype', 'shape' and 'data_offsets'");
  }
  SafetensorsEntry entry;
  entry.dtype = json_value<std::string>(value, "dtype", where);
  const auto element_size = safetensors_element_size(entry.dtype);
  if (!element_size) {
    fail(where, "unknown dtype '" + entry.dtype +
                    "'; known: F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E8M0 I64 I32 I16 I8 U8 BOOL");
  }
  entry.sizes = parse_sizes(value, where);
  parse_offsets(value, entry, where);
  if (entry.begin > entry.end || entry.end > data_size) {
    fail(where, "its data_offsets [" + std::to_string(entry.begin) + ", " +
                    std::to_string(entry.end) + "] do not lie in the " + std::to_string(data_size) +
                    " bytes of data the file has; it is truncated or damaged");
  }
  const uint64_t expected = byte_count(entry, *element_size, where);
  if (expected != entry.end - entry.begin) {
    fail(where, "dtype and shape need " + std::to_string(expected) + " bytes, data_offsets give " +
                    std::to_string(entry.end - entry.begin));
  }
  return entry;
}

// Gaps could hide data and overlaps could alias it; upstream refuses both.
void check_tiling(const SafetensorsHeader& header, uint64_t data_size, const std::string& source) {
  std::vector<std::tuple<uint64_t, uint64_t, std::string>> spans;
  spans.reserve(header.tensors.size());
  for (const auto& [name, entry] : header.tensors) {
    spans.emplace_back(entry.begin, entry.end, name);
  }
  std::sort(spans.begin(), spans.end());
  uint64_t expected = 0;
  for (const auto& [begin, end, name] : spans) {
    if (begin != expected) {
      fail(source, "tensor '" + name + "': expected its data at offset " +
                       std::to_string(expected) + ", got " + std::to_string(begin) +
                       (begin < expected ? "; tensors overlap" : "; there is a gap"));
    }
    expected = end;
  }
  if (expected != data_size) {
    fail(source, "tensors cover " + std::to_string(expected) + " bytes, the file has " +
                     std::to_string(data_size) + " bytes of data");
  }
}

}  // namespace

std::optional<uint64_t> safetensors_element_size(std::string_view dtype) {
  static const std::map<std::string_view, uint64_t> kSizes = {
      {"F64", 8},     {"F32", 4},     {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1},
      {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"I64", 8}, {"I32", 4},  {"I16", 2},
      {"I8", 1},      {"U8", 1},      {"BOOL", 1}};
  const auto found = kSizes.find(dtype);
  return found == kSizes.end() ? std::nullopt : std::optional<uint64_t>(found->second);
}

SafetensorsHeader parse_safetensors_header(std::string_view bytes, uint64_t file_size,
                                           const std::string& source) {
  const uint64_t length = header_length(bytes, file_size, source);
  const std::string_view text = bytes.substr(kPrefixBytes, length);
  if (text.empty() || text.front() != '{') {
    fail(source, "expected a safetensors header starting with '{'; not a safetensors file");
  }
  SafetensorsHeader header;
  header.data_offset = kPrefixBytes + length;
  const uint64_t data_size = file_size - header.data_offset;
  const json root = parse_strict_json(text, source);
  for (const auto& [name, value] : root.items()) {
    if (name != "__metadata__") {
      header.tensors[name] = parse_entry(value, data_size, source + ": tensor '" + name + "'");
      continue;
    }
    if (!value.is_object()) {
      fail(source, "expected __metadata__ to be an object of strings");
    }
    for (const auto& [key, text_value] : value.items()) {
      header.metadata[key] = json_value<std::string>(value, key, source + ": __metadata__");
    }
  }
  check_tiling(header, data_size, source);
  return header;
}

uint64_t lay_out_tensors(std::vector<std::pair<std::string, SafetensorsEntry>>& tensors) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return *safetensors_element_size(a.second.dtype) > *safetensors_element_size(b.second.dtype);
  });
  uint64_t offset = 0;
  for (auto& [name, entry] : tensors) {
    entry.begin = offset;
    uint64_t bytes = *safetensors_element_size(entry.dtype);
    for (const int64_t size : entry.sizes) {
      bytes *= static_cast<uint64_t>(size);
    }
    offset += bytes;
    entry.end = offset;
  }
  return offset;
}

std::string safetensors_header_bytes(
    const std::vector<std::pair<std::string, SafetensorsEntry>>& tensors,
    const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    header["__metadata__"] = metadata;
  }
  for (const auto& [name, entry] : tensors) {
    header[name] = {
        {"dtype", entry.dtype}, {"shape", entry.sizes}, {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxSafetensorsHeaderBytes) {
    throw std::invalid_argument("expected a safetensors header of at most " +
                                std::to_string(kMaxSafetensorsHeaderBytes) + " bytes, got " +
                                std::to_string(text.size()) + "; write several files");
  }
  const uint64_t length = text.size();
  std::string bytes(kPrefixBytes, '\0');
  std::memcpy(bytes.data(), &length, kPrefixBytes);
  return bytes + text;
}

}  // namespace narrowgauge::checkpoint
