#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "qat/kernels/affine_fake_quantize_cuda.h"

// A warp or a block takes a group: it reads it twice (the second time from the cache) and writes
// once. Bytes an element in bf16: 4, and an eighth for the bits.

namespace narrowgauge::qat::kernels {
namespace {

using cuda::ceil_div;
using cuda::from_float;
using cuda::kWarpSize;
using cuda::to_float;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int64_t kLargestWarpGroup = 1024;  // columns; wider groups take a block
constexpr unsigned kAll = 0xffffffffU;

// To the arithmetic's dtype, that of what is written.
template <typename Out>
__device__ float rounded(float x) {
  return to_float(from_float<Out>(x));
}

struct Qparams {
  float low;
  float scale;
  float inverse;  // of kFloatZeroPoint the scale that divides
  float zero_point;
};

__device__ float clamped(float x, float low, float high) {
  const float above = x < low ? low : x;
  return above > high ? high : above;
}

// The operations of the CPU kernel, none fused with the next.
template <typename Out>
__device__ Qparams choose(float low, float high, const AffineGrid& grid) {
  Qparams q;
  q.low = low;
  const float steps = grid.quant_max - grid.quant_min;
  const float negative = low > 0 ? 0 : low;
  const float positive = high < 0 ? 0 : high;
  const float amax = -negative > positive ? -negative : positive;
  const auto at_least = [&grid](float x) { return x < grid.eps ? grid.eps : x; };
  switch (grid.range) {
    case AffineRange::kFloatZeroPoint: {
      const float scale = __fdiv_rn(at_least(__fsub_rn(high, low)), steps);
      const float zero_point = __fadd_rn(low, __fmul_rn(scale, grid.middle));
      q.inverse = scale;
      q.scale = grid.round_qparams_to_bf16 ? rounded<uint16_t>(scale) : scale;
      q.zero_point = grid.round_qparams_to_bf16 ? rounded<uint16_t>(zero_point) : zero_point;
      return q;
    }
    case AffineRange::kAsymmetric: {
      q.scale =
          at_least(rounded<Out>(__fdiv_rn(rounded<Out>(__fsub_rn(positive, negative)), steps)));
      const float shift = rintf(rounded<Out>(__fdiv_rn(negative, q.scale)));
      q.zero_point = clamped(__fsub_rn(grid.quant_min, shift), grid.quant_min, grid.quant_max);
      break;
    }
    case AffineRange::kSymmetric:
      q.scale = at_least(rounded<Out>(__fdiv_rn(amax, steps / 2)));
      q.zero_point = grid.middle;
      break;
    case AffineRange::kFullRange:
      q.scale = at_least(rounded<Out>(__fdiv_rn(amax, -grid.quant_min)));
      q.zero_point = grid.middle;
      break;
    case AffineRange::kNoClipping: {
      const float below = rounded<Out>(__fdiv_rn(negative, grid.quant_min));
      const float above = rounded<Out>(__fdiv_rn(positive, grid.quant_max));
      q.scale = at_least(below > above ? below : above);
      q.zero_point = grid.middle;
      break;
    }
  }
  q.inverse = rounded<Out>(__fdiv_rn(1.0F, q.scale));
  return q;
}

// Smallest and largest of all threads that share a group; both NaN where one is not finite.
template <bool kBlock>
__device__ void reduce_range(float& low, float& high, bool& finite) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const float other_low = __shfl_xor_sync(kAll, low, offset);
    const float other_high = __shfl_xor_sync(kAll, high, offset);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  finite = __all_sync(kAll, finite);
  if constexpr (kBlock) {
    __shared__ float lows[kWarps];
    __shared__ float highs[kWarps];
    if (threadIdx.x % kWarpSize == 0) {
      lows[threadIdx.x / kWarpSize] = low;
      highs[threadIdx.x / kWarpSize] = high;
    }
    finite = __syncthreads_and(finite);
    for (int warp = 0; warp < kWarps; ++warp) {
      low = lows[warp] < low ? lows[warp] : low;
      high = highs[warp] > high ? highs[warp] : high;
    }
    __syncthreads();
  }
  if (!finite) {
    low = high = __uint_as_float(0x7fc00000U);
  }
}

// x as it enters the arithmetic.
template <typename Out, typename In>
__device__ float value(In x) {
  return rounded<Out>(to_float(x));
}

// clipped: as pairs of 32-bit words, low half first (the device is little-endian).
template <bool kBlock, typename In, typename Out>
__global__ void fake_quantize_kernel(const In* x, int64_t num_groups, int64_t cols,
                                     int64_t words_a_row, AffineGrid grid, Out* y,
                                     uint32_t* clipped) {
  constexpr int kTeam = kBlock ? kThreads : kWarpSize;
  const int lane = threadIdx.x % kTeam;
  const int64_t teams = int64_t{gridDim.x} * (blockDim.x / kTeam);
  const int64_t groups_a_row = cols / grid.group;
  for (int64_t g = int64_t{blockIdx.x} * (blockDim.x / kTeam) + threadIdx.x / kTeam; g < num_groups;
       g += teams) {
    const int64_t row = g / groups_a_row;
    const int64_t begin = g % groups_a_row * grid.group;
    const In* from = x + row * cols + begin;
    Out* to = y + row * cols + begin;
    float low = __uint_as_float(0x7f800000U);
    float high = -low;
    bool finite = true;
    for (int64_t i = lane; i < grid.group; i += kTeam) {
      const float v = value<Out>(from[i]);
      low = v < low ? v : low;
      high = v > high ? v : high;
      finite = finite && __fsub_rn(v, v) == 0;
    }
    reduce_range<kBlock>(low, high, finite);
    const Qparams q = choose<Out>(low, high, grid);
    const bool aligned = begin % kWarpSize == 0;
    for (int64_t first = 0; first < grid.group; first += kTeam) {
      const int64_t i = first + lane;
      bool outside = false;
      if (i < grid.group) {
        const float v = value<Out>(from[i]);
        if (grid.range == AffineRange::kFloatZeroPoint) {
          const float code = rintf(__fdiv_rn(__fsub_rn(v, q.low), q.inverse));
          const float kept = __fsub_rn(clamped(code, grid.quant_min, grid.quant_max), grid.middle);
          to[i] = from_float<Out>(__fadd_rn(__fmul_rn(kept, q.scale), q.zero_point));
        } else {
          const float code = __fadd_rn(rintf(rounded<Out>(__fmul_rn(v, q.inverse))), q.zero_point);
          const float kept = __fsub_rn(clamped(code, grid.quant_min, grid.quant_max), q.zero_point);
          to[i] = from_float<Out>(__fmul_rn(kept, q.scale));
          outside = code < grid.quant_min || code > grid.quant_max;
        }
      }
      if (clipped == nullptr) {
        continue;
      }
      // A warp's columns are one half of a word, unless groups begin elsewhere.
      const unsigned bits = __ballot_sync(kAll, outside);
      uint32_t* words = clipped + row * words_a_row * 2;
      const int64_t column = begin + i;
      if (aligned) {
        if (threadIdx.x % kWarpSize == 0 && bits != 0) {
          atomicOr(words + column / kWarpSize, bits);
        }
      } else if (outside) {
        atomicOr(words + column / kWarpSize, 1U << (column % kWarpSize));
      }
    }
  }
}

template <typename T>
__global__ void zero_clipped_kernel(const uint64_t* clipped, int64_t num_words, int64_t words_a_row,
                                    int64_t cols, T* grad) {
  const int64_t word = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (word >= num_words) {
    return;
  }
  T* from = grad + word / words_a_row * cols + word % words_a_row * 64;
  for (uint64_t bits = clipped[word]; bits != 0; bits &= bits - 1) {
    from[__ffsll(static_cast<long long>(bits)) - 1] = T{};
  }
}

}  // namespace

template <typename In, typename Out>
void fake_quantize_affine(const In* x, int64_t rows, int64_t cols, const AffineGrid& grid, Out* y,
                          uint64_t* clipped, cuda::StreamHandle stream) {
  const int64_t num_groups = cols == 0 ? 0 : rows * (cols / grid.group);
  if (num_groups == 0) {
    return;
  }
  constexpr int64_t kMaxBlocks = 1 << 20;
  const bool block = grid.group > kLargestWarpGroup;
  const int64_t blocks = block ? num_groups : ceil_div<int64_t>(num_groups, kWarps);
  const auto launch = static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  auto* halves = reinterpret_cast<uint32_t*>(clipped);
  if (block) {
    fake_quantize_kernel<true><<<launch, kThreads, 0, stream>>>(
        x, num_groups, cols, clipped_words(cols), grid, y, halves);
  } else {
    fake_quantize_kernel<false><<<launch, kThreads, 0, stream>>>(
        x, num_groups, cols, clipped_words(cols), grid, y, halves);
  }
  cuda::check_launch("fake_quantize_affine");
}

template <typename T>
void zero_clipped(const uint64_t* clipped, int64_t rows, int64_t cols, T* grad,
                  cuda::StreamHandle stream) {
  const int64_t num_words = rows * clipped_words(cols);
  if (num_words == 0) {
    return;
  }
  zero_clipped_kernel<<<static_cast<unsigned>(ceil_div<int64_t>(num_words, kThreads)), kThreads, 0,
                        stream>>>(clipped, num_words, clipped_words(cols), cols, grad);
  cuda::check_launch("zero_clipped");
}

#define NG_INSTANTIATE(In, Out)                                                            \
  template void fake_quantize_affine(const In*, int64_t, int64_t, const AffineGrid&, Out*, \
                                     uint64_t*, cuda::StreamHandle);
NG_INSTANTIATE(float, float)
NG_INSTANTIATE(float, uint16_t)
NG_INSTANTIATE(uint16_t, uint16_t)
#undef NG_INSTANTIATE
template void zero_clipped(const uint64_t*, int64_t, int64_t, float*, cuda::StreamHandle);
template void zero_clipped(const uint64_t*, int64_t, int64_t, uint16_t*, cuda::StreamHandle);

}  // namespace narrowgauge::qat::kernels
