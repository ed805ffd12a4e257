#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct XXH3_state_s;

namespace narrowgauge::checkpoint {

// XXH3_64bits of data that comes in pieces.
class Xxh3 {
 public:
  Xxh3();
  ~Xxh3();
  Xxh3(const Xxh3&) = delete;
  Xxh3& operator=(const Xxh3&) = delete;

  void update(const void* data, size_t size);
  // Of all that came so far.
  uint64_t digest() const;

 private:
  XXH3_state_s* state_;
};

uint64_t xxh3(const void* data, size_t size);
// 16 hexadecimal digits.
std::string xxh3_text(uint64_t hash);

}  // namespace narrowgauge::checkpoint
