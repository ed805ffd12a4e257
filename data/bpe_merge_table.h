#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

namespace narrowgauge::data {

struct BpeMerge {
  int32_t rank = std::numeric_limits<int32_t>::max();  // the maximum: the pair does not merge
  int32_t id = -1;                                     // of the merged token

  bool exists() const { return id >= 0; }
};

// Pair of ids -> merge: open addressing with linear probing, at most half full, so that a lookup is
// one multiplication and nearly always one cache line.
class BpeMergeTable {
 public:
  BpeMergeTable() { reserve(0); }

  // Empties the table. REQUIRES: at most num_merges inserts follow.
  void reserve(size_t num_merges) {
    const size_t capacity = std::bit_ceil(2 * num_merges + 2);
    slots_.assign(capacity, Slot{});
    shift_ = 64 - std::countr_zero(capacity);
  }

  // A later merge of the same pair replaces the earlier one.
  void insert(int32_t left, int32_t right, BpeMerge merge) {
    Slot& slot = slots_[probe(key_of(left, right))];
    slot.key = key_of(left, right);
    slot.merge = merge;
  }

  BpeMerge find(int32_t left, int32_t right) const {
    return slots_[probe(key_of(left, right))].merge;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // no pair: ids are not negative
  struct Slot {
    uint64_t key = kEmpty;
    BpeMerge merge;
  };

  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }

  // The slot of the key, or the empty one where it would go.
  size_t probe(uint64_t key) const {
    size_t index = key * 0x9E3779B97F4A7C15 >> shift_;  // Fibonacci hashing
    while (slots_[index].key != key && slots_[index].key != kEmpty) {
      index = (index + 1) & (slots_.size() - 1);
    }
    return index;
  }

  std::vector<Slot> slots_;
  int shift_ = 63;
};

}  // namespace narrowgauge::data
