#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace narrowgauge::memory {

// Which bytes of [0, capacity) are taken. Neighbouring free ranges are one range.
// Not thread-safe.
class BestFit {
 public:
  explicit BestFit(uint64_t capacity);

  // Where `size` free bytes begin, now taken: in the smallest free range that holds them, the
  // lowest of those, at its beginning. Nothing where no range does. REQUIRES: size > 0.
  std::optional<uint64_t> take(uint64_t size);

  // What a take(size) gave.
  void give_back(uint64_t offset, uint64_t size);

 private:
  void add(uint64_t offset, uint64_t size);
  void remove(std::map<uint64_t, uint64_t>::iterator range);

  std::map<uint64_t, uint64_t> size_at_;             // of each free range
  std::set<std::pair<uint64_t, uint64_t>> by_size_;  // (size, offset) of the same
};

}  // namespace narrowgauge::memory
