#include "checkpoint/xxh3.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <new>

namespace narrowgauge::checkpoint {

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (state_ == nullptr) {
    throw std::bad_alloc();
  }
  XXH3_64bits_reset(state_);
}

Xxh3::~Xxh3() { XXH3_freeState(state_); }

void Xxh3::update(const void* data, size_t size) { XXH3_64bits_update(state_, data, size); }

uint64_t Xxh3::digest() const { return XXH3_64bits_digest(state_); }

uint64_t xxh3(const void* data, size_t size) { return XXH3_64bits(data, size); }

std::string xxh3_text(uint64_t hash) {
  std::string text(16, '0');
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof(digits), hash, 16).ptr;
  std::copy_backward(digits, end, text.data() + text.size());
  return text;
}

}  // namespace narrowgauge::checkpoint
