#include "checkpoint/checkpoint_diff.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>

#include "checkpoint/safetensors_header.h"
#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

using nlohmann::json;

constexpr uint64_t kPieceBytes = uint64_t{4} << 20;

template <typename T>
T read_as(const char* data) {
  T value;
  std::memcpy(&value, data, sizeof value);
  return value;
}

double half_to_double(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(mantissa + 1024, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// What makes a number of an element; empty for dtypes whose bytes are codes.
std::function<double(const char*)> decoder_of(const std::string& dtype) {
  if (dtype == "F64") return [](const char* p) { return read_as<double>(p); };
  if (dtype == "F32") return [](const char* p) { return double{read_as<float>(p)}; };
  if (dtype == "F16") return [](const char* p) { return half_to_double(read_as<uint16_t>(p)); };
  if (dtype == "BF16") {
    return [](const char* p) {
      return double{std::bit_cast<float>(static_cast<uint32_t>(read_as<uint16_t>(p)) << 16)};
    };
  }
  if (dtype == "I64") return [](const char* p) { return static_cast<double>(read_as<int64_t>(p)); };
  if (dtype == "I32") return [](const char* p) { return double(read_as<int32_t>(p)); };
  return {};
}

std::string describe(const ManifestTensor& tensor) {
  return tensor.dtype + " " + json(tensor.sizes).dump();
}

bool has_equal_chunks(const ManifestTensor& a, const ManifestTensor& b) {
  return std::equal(a.chunks.begin(), a.chunks.end(), b.chunks.begin(), b.chunks.end(),
                    [](const ManifestChunk& x, const ManifestChunk& y) {
                      return x.row_begin == y.row_begin && x.row_end == y.row_end &&
                             x.xxh3 == y.xxh3;
                    });
}

// Rows [begin, end), wherever they lie.
void read_rows(CheckpointReader& reader, const std::string& name, const ManifestTensor& tensor,
               int64_t begin, int64_t end, char* out) {
  for (const ManifestChunk& chunk : tensor.chunks) {
    const int64_t from = std::max(begin, chunk.row_begin);
    const int64_t to = std::min(end, chunk.row_end);
    if (from < to) {
      reader.verify_chunk(name, tensor, chunk);
      reader.read_rows(name, tensor, chunk, from, to, out + size_bytes(tensor, from - begin));
    }
  }
}

struct ElementDifference {
  uint64_t num_different = 0;
  double largest = 0;           // absolute
  bool has_not_finite = false;  // NaN or infinity among them: `largest` leaves them out
};

void compare(const std::vector<char>& a, const std::vector<char>& b, size_t size,
             uint64_t element_size, const std::function<double(const char*)>& decode,
             ElementDifference& difference) {
  if (std::memcmp(a.data(), b.data(), size) == 0) {
    return;
  }
  for (size_t i = 0; i < size; i += element_size) {
    if (std::memcmp(a.data() + i, b.data() + i, element_size) == 0) {
      continue;
    }
    ++difference.num_different;
    if (decode) {
      const double distance = std::abs(decode(a.data() + i) - decode(b.data() + i));
      difference.has_not_finite |= !std::isfinite(distance);
      difference.largest =
          std::isfinite(distance) ? std::max(difference.largest, distance) : difference.largest;
    }
  }
}

// Empty: no byte differs.
std::string diff_tensor(CheckpointReader& a, CheckpointReader& b, const std::string& name) {
  const ManifestTensor& left = a.manifest().tensors.at(name);
  const ManifestTensor& right = b.manifest().tensors.at(name);
  if (left.dtype != right.dtype || left.sizes != right.sizes) {
    return describe(left) + " against " + describe(right);
  }
  if (has_equal_chunks(left, right)) {
    return "";
  }
  const uint64_t element_size = *safetensors_element_size(left.dtype);
  const auto decode = decoder_of(left.dtype);
  const int64_t rows = num_rows(left.sizes);
  const uint64_t row_bytes = std::max<uint64_t>(size_bytes(left, 1), 1);
  const auto piece_rows = static_cast<int64_t>(std::max<uint64_t>(kPieceBytes / row_bytes, 1));
  ElementDifference difference;
  std::vector<char> left_bytes, right_bytes;
  for (int64_t begin = 0; begin < rows; begin += piece_rows) {
    const int64_t end = std::min(begin + piece_rows, rows);
    const uint64_t size = size_bytes(left, end - begin);
    left_bytes.resize(size);
    right_bytes.resize(size);
    read_rows(a, name, left, begin, end, left_bytes.data());
    read_rows(b, name, right, begin, end, right_bytes.data());
    compare(left_bytes, right_bytes, size, element_size, decode, difference);
  }
  if (difference.num_different == 0) {
    return "";
  }
  std::string text = std::to_string(difference.num_different) + " of " +
                     std::to_string(size_bytes(left, rows) / element_size) + " elements differ";
  if (decode) {
    char largest[48];
    std::snprintf(largest, sizeof largest, ", by at most %.3g", difference.largest);
    text += largest;
    text += difference.has_not_finite ? ", NaN or infinity among them" : "";
  }
  return text;
}

void diff_states(const json& a, const json& b, const std::string& path,
                 std::vector<CheckpointDifference>& differences) {
  if (!a.is_object() || !b.is_object()) {
    if (a != b) {
      differences.push_back({path, a.dump() + " against " + b.dump()});
    }
    return;
  }
  for (const auto& [key, value] : a.items()) {
    if (b.contains(key)) {
      diff_states(value, b.at(key), path + "." + key, differences);
    } else {
      differences.push_back({path + "." + key, "only in the first: " + value.dump()});
    }
  }
  for (const auto& [key, value] : b.items()) {
    if (!a.contains(key)) {
      differences.push_back({path + "." + key, "only in the second: " + value.dump()});
    }
  }
}

}  // namespace

std::vector<CheckpointDifference> diff_checkpoints(CheckpointReader& a, CheckpointReader& b,
                                                   const CheckpointReader::Progress& progress) {
  std::vector<CheckpointDifference> differences;
  diff_states(json::parse(a.manifest().state_json), json::parse(b.manifest().state_json), "state",
              differences);
  uint64_t bytes_done = 0;
  for (const auto& [name, tensor] : a.manifest().tensors) {
    if (!b.manifest().tensors.contains(name)) {
      differences.push_back({name, "only in the first, " + describe(tensor)});
    } else if (const std::string text = diff_tensor(a, b, name); !text.empty()) {
      differences.push_back({name, text});
    }
    bytes_done += size_bytes(tensor, num_rows(tensor.sizes));
    if (progress) {
      progress(bytes_done);
    }
  }
  for (const auto& [name, tensor] : b.manifest().tensors) {
    if (!a.manifest().tensors.contains(name)) {
      differences.push_back({name, "only in the second, " + describe(tensor)});
    }
  }
  return differences;
}

}  // namespace narrowgauge::checkpoint
