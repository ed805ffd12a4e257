#include "data/token_storage.h"

#include <algorithm>
#include <bit>

namespace narrowgauge::data {

static_assert(std::endian::native == std::endian::little, "token files are read in place");

void TokenStorage::read_ignored(int64_t, std::span<uint8_t> out) const {
  std::fill(out.begin(), out.end(), uint8_t{0});
}

void widen_tokens(const std::byte* tokens, int token_bytes, std::span<int64_t> out) {
  // Both formats begin at a multiple of the width, and a mapping at a page.
  if (token_bytes == 2) {
    std::copy_n(reinterpret_cast<const uint16_t*>(tokens), out.size(), out.begin());
  } else {
    std::copy_n(reinterpret_cast<const uint32_t*>(tokens), out.size(), out.begin());
  }
}

int64_t find_foreign_id(std::span<const int64_t> ids, int64_t vocab_size) {
  const auto found =
      std::find_if(ids.begin(), ids.end(), [=](int64_t id) { return id < 0 || id >= vocab_size; });
  return found == ids.end() ? -1 : found - ids.begin();
}

}  // namespace narrowgauge::data
