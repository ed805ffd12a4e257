#pragma once

#include <cstdint>
#include <string_view>

namespace narrowgauge::report {

// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78; RFC 3720 appendix B.4).
uint32_t crc32c(std::string_view bytes);

// As TFRecord stores it, so that a checksum of checksums stays meaningful: rotated right by 15 bits
// plus a constant.
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace narrowgauge::report
