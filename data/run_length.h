#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace narrowgauge::data {

// The first `count` numbers of parquet's hybrid of run lengths and packed bits
// (parquet-format/Encodings.md, RLE = 3), each of bit_width bits. Throws std::runtime_error when
// there are fewer, or for a bit_width above 32. Memory: 4 bytes a number, `count` of which the
// caller has bounded.
std::vector<uint32_t> decode_run_lengths(std::string_view bytes, int bit_width, int64_t count);

}  // namespace narrowgauge::data
