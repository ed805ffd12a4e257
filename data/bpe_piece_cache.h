#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace narrowgauge::data {

// Remembers the ids of short pieces. Direct-mapped: a piece has one slot of one cache line, whose
// last writer wins, so neither lookups nor inserts allocate and memory is bounded (2 MiB).
class BpePieceCache {
 public:
  static constexpr size_t kMaxBytes = 30;
  static constexpr size_t kMaxIds = 8;

  static uint64_t hash(std::string_view text) {
    // Eight bytes a step, mixed by multiplication; collisions cost time only.
    constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;
    uint64_t hash = text.size() * kMultiplier;
    while (text.size() >= 8) {
      hash = mix(hash ^ load(text.data(), 8));
      text.remove_prefix(8);
    }
    return mix(hash ^ load(text.data(), text.size()));
  }

  BpePieceCache() : slots_(kNumSlots) {}

  // The ids of the piece, or an empty span when it is not here; valid until the next insert.
  std::span<const int32_t> find(std::string_view piece, uint64_t hash) const {
    const Slot& slot = slots_[hash & (kNumSlots - 1)];
    if (slot.num_bytes != piece.size() ||
        std::memcmp(slot.bytes.data(), piece.data(), piece.size()) != 0) {
      return {};
    }
    return {slot.ids.data(), slot.num_ids};
  }

  // REQUIRES: 1..kMaxBytes bytes. More than kMaxIds ids are not kept.
  void insert(std::string_view piece, uint64_t hash, std::span<const int32_t> ids) {
    if (ids.empty() || ids.size() > kMaxIds) {
      return;
    }
    Slot& slot = slots_[hash & (kNumSlots - 1)];
    slot.num_bytes = static_cast<uint8_t>(piece.size());
    slot.num_ids = static_cast<uint8_t>(ids.size());
    std::memcpy(slot.bytes.data(), piece.data(), piece.size());
    std::memcpy(slot.ids.data(), ids.data(), ids.size_bytes());
  }

 private:
  static constexpr size_t kNumSlots = size_t{1} << 15;

  struct alignas(64) Slot {
    uint8_t num_bytes = 0;
    uint8_t num_ids = 0;
    std::array<char, kMaxBytes> bytes;
    std::array<int32_t, kMaxIds> ids;
  };
  static_assert(sizeof(Slot) == 64);

  static uint64_t load(const char* bytes, size_t count) {
    uint64_t word = 0;
    std::memcpy(&word, bytes, count);
    return word;
  }

  static uint64_t mix(uint64_t value) {
    const auto product = static_cast<unsigned __int128>(value) * 0xA0761D6478BD642F;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }

  std::vector<Slot> slots_;
};

}  // namespace narrowgauge::data
