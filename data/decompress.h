#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace narrowgauge::data {

// How a parquet page is compressed (parquet.thrift, CompressionCodec).
enum class Compression : int32_t { kNone = 0, kSnappy = 1, kZstd = 6 };

// What `bytes` decompress to. Throws std::runtime_error unless that is exactly `size` bytes, and
// for another codec, which it names.
std::string decompress(Compression compression, std::span<const std::byte> bytes, size_t size);

// The raw format of Snappy (snappy/format_description.txt). Throws as decompress.
std::string decompress_snappy(std::span<const std::byte> bytes, size_t size);

}  // namespace narrowgauge::data
