#pragma once

#include <cstdint>

// How a 4x4 tile keeps two elements a row and two a column, for the kernels of both kinds.
//
// There are 90 patterns, but nobody looks at 90 sums: two rows of two kept elements use the four
// columns in one of 19 ways (how often each: 2+2, 2+1+1, 1+1+1+1 in any order), and the lower two
// rows must use them the complementary way. So: 36 sums for the upper half, 36 for the lower, the
// best of each of the 19 ways, and 19 sums of two.
namespace narrowgauge::sparsity::kernels {

inline constexpr int kPairs = 6;    // of columns, that one row may keep
inline constexpr int kHalves = 36;  // choices of two rows
inline constexpr int kUses = 19;    // of the columns by two rows

struct PairTable {
  int column[2][kPairs] = {{0, 0, 0, 1, 1, 2}, {1, 2, 3, 2, 3, 3}};

  constexpr uint32_t mask(int pair) const { return 1U << column[0][pair] | 1U << column[1][pair]; }
};

inline constexpr PairTable kPairTable{};

// Choices of two rows in the order of their use of the columns: those of use u are
// [begin[u], begin[u + 1]); complement[u] is the use that fills u up to two everywhere.
struct HalfTable {
  int first[kHalves] = {};      // the pair that the first row keeps
  int second[kHalves] = {};     // the second
  uint32_t mask[kHalves] = {};  // 8 bits: bit 4 row + column
  int begin[kUses + 1] = {};
  int complement[kUses] = {};
};

constexpr HalfTable make_half_table() {
  HalfTable table;
  constexpr int kDigit[4] = {1, 3, 9, 27};  // how often each column is used, in base 3
  constexpr int kAllTwice = 2 * (1 + 3 + 9 + 27);
  int uses[kUses] = {};
  int num_uses = 0;
  int num_halves = 0;
  for (int use = 0; use <= kAllTwice; ++use) {
    const int begin = num_halves;
    for (int half = 0; half < kHalves; ++half) {
      const int first = half / kPairs;
      const int second = half % kPairs;
      int columns = 0;
      for (int i = 0; i < 2; ++i) {
        columns += kDigit[kPairTable.column[i][first]] + kDigit[kPairTable.column[i][second]];
      }
      if (columns == use) {
        table.first[num_halves] = first;
        table.second[num_halves] = second;
        table.mask[num_halves++] = kPairTable.mask(first) | kPairTable.mask(second) << 4;
      }
    }
    if (num_halves > begin) {
      table.begin[num_uses] = begin;
      uses[num_uses++] = use;
    }
  }
  table.begin[num_uses] = num_halves;
  for (int u = 0; u < kUses; ++u) {
    for (int v = 0; v < kUses; ++v) {
      if (uses[u] + uses[v] == kAllTwice) {
        table.complement[u] = v;
      }
    }
  }
  return table;
}

inline constexpr HalfTable kHalfTable = make_half_table();

// How many elements each row (bits 0 to 7, two bits each) and column (bits 8 to 15) of a tile may
// keep, for the greedy algorithms.
inline constexpr uint32_t kTwoEach = 0xaaaa;
inline constexpr uint32_t kRows1122 = 0xaaa5;

}  // namespace narrowgauge::sparsity::kernels
