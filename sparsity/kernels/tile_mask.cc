#include "sparsity/kernels/tile_mask.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "sparsity/kernels/tile_patterns.h"
#include "vectorize/bfloat16.h"
#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Sixteen tiles side by side (64 columns of a strip of four rows) are decided at once: a tile a
// lane, straight-line code without branches, which the compiler turns into vectors.
namespace narrowgauge::sparsity::kernels {
namespace {

using vectorize::to_float;

constexpr int kLanes = 16;

// Sixteen tiles: [element of the tile, row-major][tile].
template <typename Value>
struct Tiles {
  alignas(64) Value value[16][kLanes];
};

using Masks = std::array<uint32_t, kLanes>;  // of 16 bits: bit 4 row + column

// Index sequence loops unroll fully, so that every table entry is a constant of the code.
template <int count, typename Body>
NG_INLINE void unrolled(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) NG_INLINE_LAMBDA {
    (body(std::integral_constant<int, i>{}), ...);
  }
  (std::make_integer_sequence<int, count>{});
}

// The best patterns of two rows that use the columns in one way.
struct BestHalf {
  float sum;
  uint32_t mask;  // 8 bits, `shift` up
};

template <int use, int shift>
NG_INLINE BestHalf best_half(const float (&first)[kPairs], const float (&second)[kPairs]) {
  constexpr int kBegin = kHalfTable.begin[use];
  constexpr int kCount = kHalfTable.begin[use + 1] - kBegin;
  BestHalf best{};
  unrolled<kCount>([&](auto i) NG_INLINE_LAMBDA {
    constexpr int kFirst = kHalfTable.first[kBegin + i];
    constexpr int kSecond = kHalfTable.second[kBegin + i];
    constexpr uint32_t kMask = kHalfTable.mask[kBegin + i] << shift;
    const float sum = first[kFirst] + second[kSecond];
    const bool better = i == 0 || sum > best.sum;
    best.sum = better ? sum : best.sum;
    best.mask = better ? kMask : best.mask;
  });
  return best;
}

// Use by use from the sums of pairs, which are 24 of the 32 registers: the halves of one use are
// dead before those of the next come.
NG_INLINE void choose_optimal(const Tiles<float>& tiles, Masks& masks) {
#pragma GCC ivdep
  for (int lane = 0; lane < kLanes; ++lane) {
    float pair_sum[4][kPairs];
    unrolled<kPairs>([&](auto pair) NG_INLINE_LAMBDA {
      for (int row = 0; row < 4; ++row) {
        pair_sum[row][pair] = tiles.value[4 * row + kPairTable.column[0][pair]][lane] +
                              tiles.value[4 * row + kPairTable.column[1][pair]][lane];
      }
    });
    float best = 0;
    uint32_t mask = 0;
    unrolled<kUses>([&](auto use) NG_INLINE_LAMBDA {
      const BestHalf upper = best_half<use, 0>(pair_sum[0], pair_sum[1]);
      const BestHalf lower = best_half<kHalfTable.complement[use], 8>(pair_sum[2], pair_sum[3]);
      const float sum = upper.sum + lower.sum;
      const bool better = use == 0 || sum > best;
      best = better ? sum : best;
      mask = better ? (upper.mask | lower.mask) : mask;
    });
    masks[lane] = mask;
  }
}

// Batcher's odd-even merge sort of 16, descending. Key: the value's order above, 15 - index below,
// so that all keys differ and the first of equals comes first.
struct SortingNetwork {
  int size;
  int upper[64];
  int lower[64];
};

constexpr SortingNetwork make_sorting_network() {
  SortingNetwork network{};
  for (int p = 1; p < 16; p *= 2) {
    for (int k = p; k >= 1; k /= 2) {
      for (int j = k % p; j + k < 16; j += 2 * k) {
        for (int i = j; i < j + k && i + k < 16; ++i) {
          if (i / (2 * p) == (i + k) / (2 * p)) {
            network.upper[network.size] = i;
            network.lower[network.size++] = i + k;
          }
        }
      }
    }
  }
  return network;
}

constexpr SortingNetwork kSortingNetwork = make_sorting_network();

template <typename Key>
NG_INLINE void sort_keys(Key (&key)[16]) {
  unrolled<kSortingNetwork.size>([&](auto comparator) NG_INLINE_LAMBDA {
    Key& upper = key[kSortingNetwork.upper[comparator]];
    Key& lower = key[kSortingNetwork.lower[comparator]];
    const Key larger = upper > lower ? upper : lower;
    lower = upper > lower ? lower : upper;
    upper = larger;
  });
}

// `room`: how many elements each of the four rows (bits 0 to 7, two bits each) and columns (bits 8
// to 15) may still take.
template <typename Key>
NG_INLINE void choose_greedily(const Tiles<Key>& tiles, uint32_t room_of_tile, Masks& masks) {
#pragma GCC ivdep
  for (int lane = 0; lane < kLanes; ++lane) {
    Key key[16];
    unrolled<16>([&](auto i) NG_INLINE_LAMBDA { key[i] = tiles.value[i][lane]; });
    sort_keys(key);
    uint32_t room = room_of_tile;
    uint32_t mask = 0;
    unrolled<16>([&](auto i) NG_INLINE_LAMBDA {
      const uint32_t index = 15U - (static_cast<uint32_t>(key[i]) & 15U);
      const uint32_t row_shift = index / 4 * 2;
      const uint32_t column_shift = 8 + index % 4 * 2;
      const uint32_t row_room = room >> row_shift;
      const uint32_t column_room = room >> column_shift;
      const uint32_t take = (row_room | row_room >> 1) & (column_room | column_room >> 1) & 1U;
      room -= take << row_shift | take << column_shift;
      mask |= take << index;
    });
    masks[lane] = mask;
  }
}

// Bits whose order as an unsigned number is the order of the values, absolute or signed.
template <bool is_signed>
NG_INLINE uint32_t order_of(uint16_t x) {
  if constexpr (is_signed) {
    return (x & 0x8000U) != 0 ? 0xffffU & ~static_cast<uint32_t>(x) : x | 0x8000U;
  }
  return x & 0x7fffU;
}

template <bool is_signed>
NG_INLINE uint32_t order_of(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if constexpr (is_signed) {
    return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  }
  return bits & 0x7fffffffU;
}

template <typename T>
using KeyOf = std::conditional_t<sizeof(T) == 2, uint32_t, uint64_t>;

template <bool is_signed, typename T>
NG_INLINE void load_keys(const T (&strip)[4][4 * kLanes], Tiles<KeyOf<T>>& tiles) {
  for (int row = 0; row < 4; ++row) {
    for (int lane = 0; lane < kLanes; ++lane) {
      unrolled<4>([&](auto col) NG_INLINE_LAMBDA {
        const KeyOf<T> order = order_of<is_signed>(strip[row][4 * lane + col]);
        tiles.value[4 * row + col][lane] = order << 4 | static_cast<KeyOf<T>>(15 - 4 * row - col);
      });
    }
  }
}

template <typename T>
NG_INLINE void choose(const T (&strip)[4][4 * kLanes], TileAlgorithm algorithm, Masks& masks) {
  if (algorithm == TileAlgorithm::kOptimal) {
    Tiles<float> tiles;
    for (int row = 0; row < 4; ++row) {
      for (int lane = 0; lane < kLanes; ++lane) {
        unrolled<4>([&](auto col) NG_INLINE_LAMBDA {
          const float value = to_float(strip[row][4 * lane + col]);
          tiles.value[4 * row + col][lane] = value * value;
        });
      }
    }
    choose_optimal(tiles, masks);
    return;
  }
  Tiles<KeyOf<T>> tiles;
  if (algorithm == TileAlgorithm::kLargestValuesGreedy) {
    load_keys<true>(strip, tiles);
  } else {
    load_keys<false>(strip, tiles);
  }
  choose_greedily(tiles, algorithm == TileAlgorithm::kCausal1122 ? kRows1122 : kTwoEach, masks);
}

template <typename T>
NG_INLINE void mask_rows(const T* weight, int64_t row_stride, int64_t rows, int64_t cols,
                         TileAlgorithm algorithm, uint8_t* bits) {
  for (int64_t row = 0; row < rows; row += 4) {
    for (int64_t col = 0; col < cols; col += 4 * kLanes) {
      const int64_t width = std::min<int64_t>(4 * kLanes, cols - col);
      T strip[4][4 * kLanes] = {};
      for (int64_t r = 0; r < 4; ++r) {
        std::memcpy(strip[r], weight + (row + r) * row_stride + col, width * sizeof(T));
      }
      Masks masks;
      choose(strip, algorithm, masks);
      for (int64_t r = 0; r < 4; ++r) {
        for (int64_t byte = 0; byte < width / 8; ++byte) {
          const uint32_t low = masks[2 * byte] >> 4 * r & 15U;
          const uint32_t high = masks[2 * byte + 1] >> 4 * r & 15U;
          bits[(row + r) * (cols / 8) + col / 8 + byte] = static_cast<uint8_t>(low | high << 4);
        }
      }
    }
  }
}

#if defined(__x86_64__)

// bf16 and kOptimal, which training uses each step: GCC's way of taking the columns of the tiles
// apart, and of putting the bits together, costs more than the choice.

bool has_512() { return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"); }

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

// Squares of the elements of sixteen tiles. A bf16 in the upper half of 32 bits is its fp32.
NG_INLINE void load_squares(const uint16_t* weight, int64_t row_stride, __mmask32 low,
                            __mmask32 high, Tiles<float>& tiles) {
  alignas(64) static constexpr auto kIndices = [] {
    std::array<std::array<uint16_t, 32>, 4> indices{};
    for (int col = 0; col < 4; ++col) {
      for (int lane = 0; lane < kLanes; ++lane) {
        indices[col][2 * lane + 1] = static_cast<uint16_t>(4 * lane + col);
      }
    }
    return indices;
  }();
  for (int row = 0; row < 4; ++row) {
    const uint16_t* from = weight + row * row_stride;
    const __m512i first = _mm512_maskz_loadu_epi16(low, from);
    const __m512i second = _mm512_maskz_loadu_epi16(high, from + 32);
    for (int col = 0; col < 4; ++col) {
      const __m512i value = _mm512_maskz_permutex2var_epi16(
          0xaaaaaaaaU, first, _mm512_load_si512(kIndices[col].data()), second);
      const __m512 x = _mm512_castsi512_ps(value);
      _mm512_store_ps(tiles.value[4 * row + col], _mm512_mul_ps(x, x));
    }
  }
}

// Row `row` of sixteen tiles: 8 bytes, two tiles each.
NG_INLINE uint64_t row_bits(__m512i masks, int row) {
  const __m512i half_bytes =
      _mm512_and_si512(_mm512_srl_epi32(masks, _mm_cvtsi32_si128(4 * row)), _mm512_set1_epi32(15));
  const __m512i bytes = _mm512_or_si512(half_bytes, _mm512_srli_epi64(half_bytes, 28));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_cvtepi64_epi8(bytes)));
}

NG_INLINE __mmask32 first_of_32(int64_t count) {
  return static_cast<__mmask32>(count >= 32 ? 0xffffffffU
                                            : (1U << std::max<int64_t>(count, 0)) - 1);
}

void optimal_mask_512(const uint16_t* weight, int64_t row_stride, int64_t rows, int64_t cols,
                      uint8_t* bits) {
  for (int64_t row = 0; row < rows; row += 4) {
    for (int64_t col = 0; col < cols; col += 4 * kLanes) {
      const int64_t width = std::min<int64_t>(4 * kLanes, cols - col);
      Tiles<float> tiles;
      // The strip below, of this call or the next: the choice leaves memory idle otherwise.
      for (int64_t r = 4; r < 8; ++r) {
        const auto* below = reinterpret_cast<const char*>(weight + (row + r) * row_stride + col);
        _mm_prefetch(below, _MM_HINT_T1);
        _mm_prefetch(below + 64, _MM_HINT_T1);
      }
      load_squares(weight + row * row_stride + col, row_stride, first_of_32(width),
                   first_of_32(width - 32), tiles);
      alignas(64) Masks masks;
      choose_optimal(tiles, masks);
      const __m512i chosen = _mm512_load_si512(masks.data());
      for (int r = 0; r < 4; ++r) {
        const uint64_t kept = row_bits(chosen, r);
        std::memcpy(bits + (row + r) * (cols / 8) + col / 8, &kept, width / 8);
      }
    }
  }
}

#pragma GCC pop_options

#endif

}  // namespace

NG_TARGET_CLONES void tile_mask(const float* weight, int64_t row_stride, int64_t rows, int64_t cols,
                                TileAlgorithm algorithm, uint8_t* bits) {
  mask_rows(weight, row_stride, rows, cols, algorithm, bits);
}

NG_TARGET_CLONES void tile_mask_of_loops(const uint16_t* weight, int64_t row_stride, int64_t rows,
                                         int64_t cols, TileAlgorithm algorithm, uint8_t* bits) {
  mask_rows(weight, row_stride, rows, cols, algorithm, bits);
}

void tile_mask(const uint16_t* weight, int64_t row_stride, int64_t rows, int64_t cols,
               TileAlgorithm algorithm, uint8_t* bits) {
#if defined(__x86_64__)
  if (algorithm == TileAlgorithm::kOptimal && has_512()) {
    optimal_mask_512(weight, row_stride, rows, cols, bits);
    return;
  }
#endif
  tile_mask_of_loops(weight, row_stride, rows, cols, algorithm, bits);
}

}  // namespace narrowgauge::sparsity::kernels
