// A GGUF file, version 3, little-endian (github.com/ggml-org/ggml, docs/gguf.md):
//   "GGUF", u32 version, u64 tensors, u64 pairs
//   each pair: string key, u32 kind, value; a string is u64 length and bytes, an array is u32 kind,
//              u64 count and values
//   each tensor: string name, u32 dimensions, u64 sizes (the contiguous one first), u32 type, u64
//   offset padding to the alignment, then the data, each tensor padded likewise
#include "export/gguf_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <stdexcept>
#include <tuple>

namespace narrowgauge::exports {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF data is little-endian");

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kVersion = 3;
constexpr size_t kMaxDimensions = 4;        // GGML_MAX_DIMS
constexpr size_t kMaxTensorNameBytes = 63;  // GGML_MAX_NAME - 1
constexpr int kMaxArrayDepth = 4;

// The kinds of values, with the format's numbers.
enum Kind : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Bytes of a value of fixed size; 0 for strings, arrays and unknown kinds.
uint64_t fixed_bytes(uint32_t kind) {
  constexpr uint64_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kind < std::size(kBytes) ? kBytes[kind] : 0;
}

uint64_t padded(uint64_t size, uint64_t alignment) {
  return (size + alignment - 1) / alignment * alignment;
}

// --- writing ---

template <typename T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_text(std::string& bytes, std::string_view text) {
  append<uint64_t>(bytes, text.size());
  bytes.append(text);
}

template <typename T>
void append_array(std::string& bytes, Kind kind, const std::vector<T>& values) {
  append<uint32_t>(bytes, kArray);
  append<uint32_t>(bytes, kind);
  append<uint64_t>(bytes, values.size());
  for (const T& value : values) {
    if constexpr (std::is_same_v<T, std::string>) {
      append_text(bytes, value);
    } else {
      append(bytes, value);
    }
  }
}

struct AppendValue {
  std::string& bytes;

  template <typename T>
  void scalar(Kind kind, T value) const {
    append<uint32_t>(bytes, kind);
    append(bytes, value);
  }
  void operator()(uint32_t value) const { scalar(kUint32, value); }
  void operator()(int32_t value) const { scalar(kInt32, value); }
  void operator()(float value) const { scalar(kFloat32, value); }
  void operator()(bool value) const { scalar<uint8_t>(kBool, value ? 1 : 0); }
  void operator()(uint64_t value) const { scalar(kUint64, value); }
  void operator()(int64_t value) const { scalar(kInt64, value); }
  void operator()(double value) const { scalar(kFloat64, value); }
  void operator()(const std::string& value) const {
    append<uint32_t>(bytes, kString);
    append_text(bytes, value);
  }
  void operator()(const std::vector<std::string>& values) const {
    append_array(bytes, kString, values);
  }
  void operator()(const std::vector<float>& values) const { append_array(bytes, kFloat32, values); }
  void operator()(const std::vector<int32_t>& values) const { append_array(bytes, kInt32, values); }
};

// --- reading ---

// A cursor over untrusted bytes: every length is compared with what is left before it is used.
class Reader {
 public:
  Reader(std::string_view bytes, const std::string& source) : bytes_(bytes), source_(source) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(source_ + ": " + what);
  }

  std::string_view take(uint64_t size, const char* what) {
    if (size > bytes_.size() - position_) {
      fail(std::string("expected ") + std::to_string(size) + " bytes of " + what + " at offset " +
           std::to_string(position_) + ", the file has " +
           std::to_string(bytes_.size() - position_) + " left; it is truncated or damaged");
    }
    const std::string_view taken = bytes_.substr(position_, size);
    position_ += size;
    return taken;
  }

  template <typename T>
  T number(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string text(const char* what) {
    const auto size = number<uint64_t>(what);
    return std::string(take(size, what));
  }

  // A count of items that take at least `least_bytes` each.
  uint64_t count(uint64_t claimed, uint64_t least_bytes, const char* what) const {
    if (claimed > (bytes_.size() - position_) / least_bytes) {
      fail("claims " + std::to_string(claimed) + " " + what + ", more than its " +
           std::to_string(bytes_.size() - position_) + " bytes left can hold");
    }
    return claimed;
  }

  uint64_t position() const { return position_; }

 private:
  std::string_view bytes_;
  const std::string& source_;
  uint64_t position_ = 0;
};

template <typename T>
std::vector<T> read_numbers(Reader& reader, uint64_t count) {
  std::vector<T> values(count);
  const std::string_view bytes = reader.take(count * sizeof(T), "an array");
  if (count > 0) {
    std::memcpy(values.data(), bytes.data(), bytes.size());
  }
  return values;
}

void skip_array(Reader& reader, uint32_t kind, uint64_t count, int depth);

// The value of an array that this program keeps, or nothing.
std::optional<GgufValue> read_array(Reader& reader, int depth) {
  const auto kind = reader.number<uint32_t>("an array's kind");
  const auto claimed = reader.number<uint64_t>("an array's count");
  const uint64_t least = kind == kString ? 8 : kind == kArray ? 12 : fixed_bytes(kind);
  if (least == 0) {
    reader.fail("an array has the unknown kind " + std::to_string(kind));
  }
  const uint64_t count = reader.count(claimed, least, "array values");
  if (kind == kFloat32) {
    return read_numbers<float>(reader, count);
  }
  if (kind == kInt32) {
    return read_numbers<int32_t>(reader, count);
  }
  if (kind == kString) {
    std::vector<std::string> values;
    values.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      values.push_back(reader.text("a string"));
    }
    return values;
  }
  skip_array(reader, kind, count, depth);
  return std::nullopt;
}

void skip_array(Reader& reader, uint32_t kind, uint64_t count, int depth) {
  if (kind != kArray) {
    reader.take(count * fixed_bytes(kind), "an array");
    return;
  }
  if (depth == kMaxArrayDepth) {
    reader.fail("arrays nest deeper than " + std::to_string(kMaxArrayDepth));
  }
  for (uint64_t i = 0; i < count; ++i) {
    read_array(reader, depth + 1);
  }
}

std::optional<GgufValue> read_value(Reader& reader, const std::string& key) {
  const auto kind = reader.number<uint32_t>("a value's kind");
  switch (kind) {
    case kUint32:
      return reader.number<uint32_t>("a value");
    case kInt32:
      return reader.number<int32_t>("a value");
    case kFloat32:
      return reader.number<float>("a value");
    case kBool: {
      const auto value = reader.number<uint8_t>("a value");
      if (value > 1) {
        reader.fail("'" + key + "': expected a bool of 0 or 1, got " + std::to_string(value));
      }
      return value == 1;
    }
    case kString:
      return reader.text("a string");
    case kUint64:
      return reader.number<uint64_t>("a value");
    case kInt64:
      return reader.number<int64_t>("a value");
    case kFloat64:
      return reader.number<double>("a value");
    case kArray:
      return read_array(reader, 1);
    default:
      if (fixed_bytes(kind) == 0) {
        reader.fail("'" + key + "' has the unknown kind " + std::to_string(kind));
      }
      reader.take(fixed_bytes(kind), "a value");
      return std::nullopt;
  }
}

uint64_t alignment_of(const GgufMetadata& metadata, const Reader& reader) {
  const GgufValue* value = find_gguf_value(metadata, "general.alignment");
  if (value == nullptr) {
    return kGgufAlignment;
  }
  const auto* alignment = std::get_if<uint32_t>(value);
  if (alignment == nullptr || *alignment == 0 || !std::has_single_bit(*alignment)) {
    reader.fail("expected general.alignment to be a power of two of kind u32");
  }
  return *alignment;
}

GgufTensorInfo read_tensor_info(Reader& reader, const std::string& source) {
  GgufTensorInfo info;
  info.name = reader.text("a tensor's name");
  if (info.name.empty() || info.name.size() > kMaxTensorNameBytes) {
    reader.fail("expected tensor names of 1 to 63 bytes, got '" + info.name.substr(0, 80) + "'");
  }
  const auto dimensions = reader.number<uint32_t>("a tensor's dimensions");
  if (dimensions > kMaxDimensions) {
    reader.fail("tensor '" + info.name + "': expected at most 4 dimensions, got " +
                std::to_string(dimensions));
  }
  for (uint32_t i = 0; i < dimensions; ++i) {
    const auto size = reader.number<uint64_t>("a tensor's sizes");
    if (size > uint64_t{INT64_MAX}) {
      reader.fail("tensor '" + info.name + "': a size exceeds 2^63 - 1");
    }
    info.sizes.insert(info.sizes.begin(), static_cast<int64_t>(size));
  }
  const auto number = reader.number<uint32_t>("a tensor's type");
  const auto type = ggml_type_from_number(number);
  if (!type) {
    throw std::runtime_error(source + ": tensor '" + info.name + "' has ggml type " +
                             std::to_string(number) +
                             "; this program reads F32, F16, BF16, Q4_0 and Q8_0");
  }
  info.type = *type;
  info.offset = reader.number<uint64_t>("a tensor's offset");
  return info;
}

void check_data(const GgufHeader& header, uint64_t alignment, uint64_t data_size,
                const std::string& source) {
  std::vector<std::tuple<uint64_t, uint64_t, const std::string*>> spans;
  for (const GgufTensorInfo& info : header.tensors) {
    const uint64_t size = gguf_tensor_bytes(info.type, info.sizes, source + ": " + info.name);
    if (info.offset % alignment != 0 || info.offset > data_size || size > data_size - info.offset) {
      throw std::runtime_error(source + ": tensor '" + info.name + "' of " + std::to_string(size) +
                               " bytes at offset " + std::to_string(info.offset) +
                               " is not aligned to " + std::to_string(alignment) +
                               " or does not lie in the " + std::to_string(data_size) +
                               " bytes of data; the file is truncated or damaged");
    }
    spans.emplace_back(info.offset, info.offset + size, &info.name);
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    if (std::get<0>(spans[i]) < std::get<1>(spans[i - 1])) {
      throw std::runtime_error(source + ": tensors '" + *std::get<2>(spans[i - 1]) + "' and '" +
                               *std::get<2>(spans[i]) + "' overlap");
    }
  }
}

}  // namespace

const GgufValue* find_gguf_value(const GgufMetadata& metadata, std::string_view key) {
  const auto found = std::find_if(metadata.begin(), metadata.end(),
                                  [&](const auto& pair) { return pair.first == key; });
  return found == metadata.end() ? nullptr : &found->second;
}

uint64_t gguf_tensor_bytes(GgmlType type, const std::vector<int64_t>& sizes,
                           const std::string& name) {
  const GgmlBlock block = ggml_block(type);
  int64_t elements = 1;
  bool overflow = sizes.size() > kMaxDimensions;
  for (const int64_t size : sizes) {
    // ggml divides by sizes, so zero is none.
    overflow |= size <= 0 || __builtin_mul_overflow(elements, size, &elements);
  }
  overflow |= __builtin_mul_overflow(elements, std::max(block.bytes, block.elements), &elements);
  if (overflow) {
    throw std::invalid_argument(name +
                                ": expected one to four sizes above 0 whose bytes fit 63 bits");
  }
  elements /= std::max(block.bytes, block.elements);
  const int64_t row = sizes.empty() ? 1 : sizes.back();
  if (row % block.elements != 0) {
    throw std::invalid_argument(name + ": expected rows of a multiple of " +
                                std::to_string(block.elements) + " for " + ggml_type_name(type) +
                                ", got " + std::to_string(row) + "; export it as F16 or BF16");
  }
  return static_cast<uint64_t>(elements / block.elements * block.bytes);
}

uint64_t lay_out_gguf_tensors(std::vector<GgufTensorInfo>& tensors) {
  uint64_t offset = 0;
  for (GgufTensorInfo& info : tensors) {
    info.offset = offset;
    offset += padded(gguf_tensor_bytes(info.type, info.sizes, info.name), kGgufAlignment);
  }
  return offset;
}

std::string gguf_header_bytes(const GgufMetadata& metadata,
                              const std::vector<GgufTensorInfo>& tensors) {
  std::set<std::string_view> names;
  const auto check_new = [&](const std::string& name) {
    if (name.empty() || !names.insert(name).second) {
      throw std::invalid_argument("expected unique names in a GGUF file, got '" + name + "' twice");
    }
  };
  std::string bytes(kMagic);
  append<uint32_t>(bytes, kVersion);
  append<uint64_t>(bytes, tensors.size());
  append<uint64_t>(bytes, metadata.size());
  for (const auto& [key, value] : metadata) {
    check_new(key);
    append_text(bytes, key);
    std::visit(AppendValue{bytes}, value);
  }
  names.clear();
  for (const GgufTensorInfo& info : tensors) {
    check_new(info.name);
    append_text(bytes, info.name);
    append<uint32_t>(bytes, static_cast<uint32_t>(info.sizes.size()));
    for (auto size = info.sizes.rbegin(); size != info.sizes.rend(); ++size) {
      append<uint64_t>(bytes, static_cast<uint64_t>(*size));
    }
    append<uint32_t>(bytes, static_cast<uint32_t>(info.type));
    append<uint64_t>(bytes, info.offset);
  }
  bytes.resize(padded(bytes.size(), kGgufAlignment), '\0');
  return bytes;
}

GgufHeader parse_gguf_header(std::string_view bytes, uint64_t file_size,
                             const std::string& source) {
  Reader reader(bytes.substr(0, file_size), source);
  if (reader.take(kMagic.size(), "the magic") != kMagic) {
    reader.fail("expected a file that begins with GGUF; it is not a GGUF file");
  }
  if (const auto version = reader.number<uint32_t>("the version"); version != kVersion) {
    reader.fail("expected GGUF version 3, got " + std::to_string(version));
  }
  // The least a tensor takes: name length and a byte, dimensions, type, offset; a pair: key length
  // and a byte, kind and a byte.
  const auto num_tensors = reader.number<uint64_t>("the number of tensors");
  const auto num_pairs = reader.number<uint64_t>("the number of keys");
  reader.count(num_tensors, 25, "tensors");
  reader.count(num_pairs, 14, "keys");
  GgufHeader header;
  std::set<std::string> names;
  for (uint64_t i = 0; i < num_pairs; ++i) {
    const std::string key = reader.text("a key");
    if (!names.insert(key).second) {
      reader.fail("key '" + key + "' stands twice");
    }
    if (auto value = read_value(reader, key)) {
      header.metadata.emplace_back(key, std::move(*value));
    }
  }
  names.clear();
  for (uint64_t i = 0; i < num_tensors; ++i) {
    header.tensors.push_back(read_tensor_info(reader, source));
    if (!names.insert(header.tensors.back().name).second) {
      reader.fail("tensor '" + header.tensors.back().name + "' stands twice");
    }
  }
  const uint64_t alignment = alignment_of(header.metadata, reader);
  header.data_offset = padded(reader.position(), alignment);
  if (header.data_offset > file_size) {
    reader.fail("ends before its data begins; it is truncated");
  }
  try {
    check_data(header, alignment, file_size - header.data_offset, source);
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(error.what());
  }
  return header;
}

}  // namespace narrowgauge::exports
