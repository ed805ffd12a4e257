#include "data/decompress.h"

#include <stdexcept>

// Of zstd.h, which Debian packs apart from the library that every system has; the functions have
// not changed since version 1.0.
extern "C" {
size_t ZSTD_decompress(void* out, size_t out_size, const void* in, size_t in_size);
}

namespace narrowgauge::data {
namespace {

[[noreturn]] void fail(const char* codec) {
  throw std::runtime_error(std::string("damaged page: its ") + codec +
                           " data do not decompress to the size it says");
}

std::string decompress_zstd(std::span<const std::byte> bytes, size_t size) {
  std::string out(size, '\0');
  // Errors are sizes that no buffer has.
  if (ZSTD_decompress(out.data(), size, bytes.data(), bytes.size()) != size) fail("zstd");
  return out;
}

}  // namespace

std::string decompress_snappy(std::span<const std::byte> bytes, size_t size) {
  size_t at = 0;
  const auto next = [&]() -> size_t {
    if (at == bytes.size()) fail("snappy");
    return static_cast<uint8_t>(bytes[at++]);
  };
  const auto next_bytes = [&](size_t count) {
    size_t value = 0;
    for (size_t i = 0; i < count; ++i) value |= next() << (8 * i);
    return value;
  };
  size_t said = 0;
  for (int shift = 0;; shift += 7) {
    const size_t byte = next();
    if (shift > 28) fail("snappy");
    said |= (byte & 127) << shift;
    if (byte < 128) break;
  }
  if (said != size) fail("snappy");
  std::string out;
  out.reserve(size);
  while (at < bytes.size()) {
    const size_t tag = next();
    if ((tag & 3) == 0) {  // a literal
      size_t length = tag >> 2;
      if (length >= 60) length = next_bytes(length - 59);
      ++length;
      if (length > bytes.size() - at || length > size - out.size()) fail("snappy");
      out.append(reinterpret_cast<const char*>(bytes.data()) + at, length);
      at += length;
      continue;
    }
    const bool is_short = (tag & 3) == 1;
    const size_t length = is_short ? (tag >> 2 & 7) + 4 : (tag >> 2) + 1;
    const size_t offset = is_short ? (tag >> 5) << 8 | next() : next_bytes((tag & 3) == 2 ? 2 : 4);
    if (offset == 0 || offset > out.size() || length > size - out.size()) fail("snappy");
    // What is copied may be what the copy writes.
    for (size_t i = 0; i < length; ++i) out += out[out.size() - offset];
  }
  if (out.size() != size) fail("snappy");
  return out;
}

std::string decompress(Compression compression, std::span<const std::byte> bytes, size_t size) {
  switch (compression) {
    case Compression::kNone:
      if (bytes.size() != size) fail("uncompressed");
      return {reinterpret_cast<const char*>(bytes.data()), size};
    case Compression::kSnappy:
      return decompress_snappy(bytes, size);
    case Compression::kZstd:
      return decompress_zstd(bytes, size);
  }
  throw std::runtime_error(
      "expected pages compressed by snappy, zstd or not at all, got "
      "codec " +
      std::to_string(static_cast<int>(compression)) + "; write the file again with one of these");
}

}  // namespace narrowgauge::data
