#include <cstdint>
#include <utility>

#include "cuda/launch.cuh"
#include "sparsity/kernels/tile_mask_cuda.h"
#include "sparsity/kernels/tile_patterns.h"

// A thread decides two tiles side by side, 4 x 8 elements, so that it writes whole bytes of the
// mask. Bytes an element in bf16: 2 read, 1/8 written, and 2 for the masked weight.

namespace narrowgauge::sparsity::kernels {
namespace {

using cuda::ceil_div;

constexpr int kThreads = 128;

__device__ float to_float(float x) { return x; }
__device__ float to_float(uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); }

struct BestHalves {
  float sum[kUses];
  uint32_t mask[kUses];
};

template <int use, int half>
__device__ void consider_half(const float (&pair_sum)[2][kPairs], BestHalves& best) {
  constexpr int kFirst = kHalfTable.first[half];
  constexpr int kSecond = kHalfTable.second[half];
  constexpr uint32_t kMask = kHalfTable.mask[half];
  const float sum = pair_sum[0][kFirst] + pair_sum[1][kSecond];
  constexpr bool kIsFirst = half == kHalfTable.begin[use];
  const bool better = kIsFirst || sum > best.sum[use];
  best.sum[use] = better ? sum : best.sum[use];
  best.mask[use] = better ? kMask : best.mask[use];
}

template <int use, int... i>
__device__ void consider_use(const float (&pair_sum)[2][kPairs], BestHalves& best,
                             std::integer_sequence<int, i...>) {
  (consider_half<use, kHalfTable.begin[use] + i>(pair_sum, best), ...);
}

template <int... use>
__device__ void consider_uses(const float (&pair_sum)[2][kPairs], BestHalves& best,
                              std::integer_sequence<int, use...>) {
  (consider_use<use>(
       pair_sum, best,
       std::make_integer_sequence<int, kHalfTable.begin[use + 1] - kHalfTable.begin[use]>{}),
   ...);
}

template <int pair>
__device__ float sum_pair(const float (&row)[4]) {
  constexpr int kFirst = kPairTable.column[0][pair];
  constexpr int kSecond = kPairTable.column[1][pair];
  return row[kFirst] + row[kSecond];
}

template <int... pair>
__device__ void sum_pairs(const float (&row)[4], float (&sums)[kPairs],
                          std::integer_sequence<int, pair...>) {
  ((sums[pair] = sum_pair<pair>(row)), ...);
}

__device__ void best_halves(const float (&square)[4][4], int row, BestHalves& best) {
  float pair_sum[2][kPairs];
  sum_pairs(square[row], pair_sum[0], std::make_integer_sequence<int, kPairs>{});
  sum_pairs(square[row + 1], pair_sum[1], std::make_integer_sequence<int, kPairs>{});
  consider_uses(pair_sum, best, std::make_integer_sequence<int, kUses>{});
}

template <int use>
__device__ void join(const BestHalves& upper, const BestHalves& lower, float& best,
                     uint32_t& mask) {
  constexpr int kComplement = kHalfTable.complement[use];
  const float sum = upper.sum[use] + lower.sum[kComplement];
  const bool better = use == 0 || sum > best;
  best = better ? sum : best;
  mask = better ? (upper.mask[use] | lower.mask[kComplement] << 8) : mask;
}

template <int... use>
__device__ uint32_t join_all(const BestHalves& upper, const BestHalves& lower,
                             std::integer_sequence<int, use...>) {
  float best = 0;
  uint32_t mask = 0;
  (join<use>(upper, lower, best, mask), ...);
  return mask;
}

__device__ uint32_t choose_optimal(const float (&square)[4][4]) {
  BestHalves upper;
  BestHalves lower;
  best_halves(square, 0, upper);
  best_halves(square, 2, lower);
  return join_all(upper, lower, std::make_integer_sequence<int, kUses>{});
}

// Bits whose order as an unsigned number is the order of the values.
__device__ uint32_t order_of(float x, bool is_signed) {
  const uint32_t bits = __float_as_uint(x);
  if (!is_signed) {
    return bits & 0x7fffffffU;
  }
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

// Takes the largest element that is left, 16 times: a tile is too small for a sort to pay.
__device__ uint32_t choose_greedily(const float (&value)[4][4], bool is_signed, uint32_t room) {
  uint32_t seen = 0;
  uint32_t mask = 0;
  for (int taken = 0; taken < 16; ++taken) {
    uint32_t best = 0;
    int best_index = -1;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t order = order_of(value[i / 4][i % 4], is_signed);
      const bool better = (seen >> i & 1U) == 0 && (best_index < 0 || order > best);
      best = better ? order : best;
      best_index = better ? i : best_index;
    }
    seen |= 1U << best_index;
    const int row_shift = best_index / 4 * 2;
    const int column_shift = 8 + best_index % 4 * 2;
    if ((room >> row_shift & 3U) != 0 && (room >> column_shift & 3U) != 0) {
      room -= 1U << row_shift | 1U << column_shift;
      mask |= 1U << best_index;
    }
  }
  return mask;
}

__device__ uint32_t choose(float (&value)[4][4], TileAlgorithm algorithm) {
  if (algorithm == TileAlgorithm::kOptimal) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      value[i / 4][i % 4] *= value[i / 4][i % 4];
    }
    return choose_optimal(value);
  }
  return choose_greedily(value, algorithm == TileAlgorithm::kLargestValuesGreedy,
                         algorithm == TileAlgorithm::kCausal1122 ? kRows1122 : kTwoEach);
}

// Eight elements that one thread reads of a row.
template <typename T>
struct alignas(sizeof(T) * 8 > 16 ? 16 : sizeof(T) * 8) Eight {
  T value[8];
};

template <typename T>
__global__ void mask_kernel(const T* weight, int64_t rows, int64_t cols, TileAlgorithm algorithm,
                            uint8_t* bits, T* masked) {
  const int64_t bytes = cols / 8;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= rows / 4 * bytes) {
    return;
  }
  const int64_t row = index / bytes * 4;
  const int64_t byte = index % bytes;
  Eight<T> strip[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    strip[r] = *reinterpret_cast<const Eight<T>*>(weight + (row + r) * cols + 8 * byte);
  }
  uint32_t masks[2];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    float value[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      value[i / 4][i % 4] = to_float(strip[i / 4].value[4 * tile + i % 4]);
    }
    masks[tile] = choose(value, algorithm);
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const uint32_t kept = (masks[0] >> 4 * r & 15U) | (masks[1] >> 4 * r & 15U) << 4;
    bits[(row + r) * bytes + byte] = static_cast<uint8_t>(kept);
    if (masked != nullptr) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        strip[r].value[i] = (kept >> i & 1U) != 0 ? strip[r].value[i] : T{0};
      }
      *reinterpret_cast<Eight<T>*>(masked + (row + r) * cols + 8 * byte) = strip[r];
    }
  }
}

template <typename T>
__global__ void apply_kernel(const T* weight, const uint8_t* mask, T* out, int64_t num_bytes) {
  const int64_t byte = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (byte >= num_bytes) {
    return;
  }
  Eight<T> values = reinterpret_cast<const Eight<T>*>(weight)[byte];
  const uint32_t kept = mask[byte];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values.value[i] = (kept >> i & 1U) != 0 ? values.value[i] : T{0};
  }
  reinterpret_cast<Eight<T>*>(out)[byte] = values;
}

}  // namespace

template <typename T>
void tile_mask(const T* weight, int64_t rows, int64_t cols, TileAlgorithm algorithm, uint8_t* bits,
               T* masked, cuda::StreamHandle stream) {
  const int64_t count = rows / 4 * (cols / 8);
  if (count == 0) {
    return;
  }
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(count, kThreads));
  mask_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(weight, rows, cols,
                                                                          algorithm, bits, masked);
  cuda::check_launch("tile_mask");
}

template <typename T>
void apply_mask(const T* weight, const uint8_t* mask, T* out, int64_t num_elements,
                cuda::StreamHandle stream) {
  if (num_elements == 0) {
    return;
  }
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(num_elements / 8, kThreads));
  apply_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(weight, mask, out,
                                                                           num_elements / 8);
  cuda::check_launch("apply_mask");
}

template void tile_mask(const float*, int64_t, int64_t, TileAlgorithm, uint8_t*, float*,
                        cuda::StreamHandle);
template void tile_mask(const uint16_t*, int64_t, int64_t, TileAlgorithm, uint8_t*, uint16_t*,
                        cuda::StreamHandle);
template void apply_mask(const float*, const uint8_t*, float*, int64_t, cuda::StreamHandle);
template void apply_mask(const uint16_t*, const uint8_t*, uint16_t*, int64_t, cuda::StreamHandle);

}  // namespace narrowgauge::sparsity::kernels
