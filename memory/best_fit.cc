#include "memory/best_fit.h"

#include <iterator>

namespace narrowgauge::memory {

BestFit::BestFit(uint64_t capacity) {
  if (capacity > 0) {
    add(0, capacity);
  }
}

void BestFit::add(uint64_t offset, uint64_t size) {
  size_at_.emplace(offset, size);
  by_size_.emplace(size, offset);
}

void BestFit::remove(std::map<uint64_t, uint64_t>::iterator range) {
  by_size_.erase({range->second, range->first});
  size_at_.erase(range);
}

std::optional<uint64_t> BestFit::take(uint64_t size) {
  const auto best = by_size_.lower_bound({size, 0});
  if (best == by_size_.end()) {
    return std::nullopt;
  }
  const auto [range_size, offset] = *best;
  remove(size_at_.find(offset));
  if (range_size > size) {
    add(offset + size, range_size - size);
  }
  return offset;
}

void BestFit::give_back(uint64_t offset, uint64_t size) {
  const auto next = size_at_.lower_bound(offset);
  if (next != size_at_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      size += previous->second;
      remove(previous);
    }
  }
  if (next != size_at_.end() && next->first == offset + size) {
    size += next->second;
    remove(next);
  }
  add(offset, size);
}

}  // namespace narrowgauge::memory
