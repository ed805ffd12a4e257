#include "data/run_length.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace narrowgauge::data {
namespace {

[[noreturn]] void fail() {
  throw std::runtime_error("damaged page: run lengths that end too early");
}

uint64_t take_varint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 63 && !bytes.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes.front());
    bytes.remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 127) << shift;
    if (byte < 128) return value;
  }
  fail();
}

// Little-endian, of at most 4 bytes. REQUIRES: they are there.
uint32_t load(std::string_view bytes, size_t size) {
  uint32_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  }
  return value;
}

}  // namespace

std::vector<uint32_t> decode_run_lengths(std::string_view bytes, int bit_width, int64_t count) {
  if (bit_width < 0 || bit_width > 32) {
    throw std::runtime_error("damaged page: numbers of " + std::to_string(bit_width) + " bits");
  }
  std::vector<uint32_t> numbers;
  const auto wanted = static_cast<uint64_t>(count);
  const uint64_t mask = (uint64_t{1} << bit_width) - 1;
  while (numbers.size() < wanted) {
    const uint64_t header = take_varint(bytes);
    const uint64_t left = wanted - numbers.size();
    if ((header & 1) == 0) {
      const size_t size = (bit_width + 7) / 8;
      if (header == 0 || bytes.size() < size) fail();
      numbers.insert(numbers.end(), std::min(header >> 1, left), load(bytes, size));
      bytes.remove_prefix(size);
      continue;
    }
    // Groups of 8 numbers take bit_width bytes each; the last may be cut short.
    const uint64_t groups = header >> 1;
    if (groups == 0) fail();
    const uint64_t packed = std::min(left, groups > left ? left : groups * 8);
    uint64_t buffer = 0;
    int num_bits = 0;
    size_t at = 0;
    for (uint64_t i = 0; i < packed; ++i) {
      for (; num_bits < bit_width; num_bits += 8) {
        if (at == bytes.size()) fail();
        buffer |= static_cast<uint64_t>(static_cast<unsigned char>(bytes[at++])) << num_bits;
      }
      numbers.push_back(static_cast<uint32_t>(buffer & mask));
      buffer >>= bit_width;
      num_bits -= bit_width;
    }
    bytes.remove_prefix(std::min<uint64_t>(bytes.size(), groups > left ? at : groups * bit_width));
  }
  return numbers;
}

}  // namespace narrowgauge::data
