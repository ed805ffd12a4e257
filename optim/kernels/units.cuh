#pragma once

#include <cstdint>

#include "cuda/vector.cuh"

// Neighbours in memory that a lane holds, packed into words as they lie there: widening them is
// left to their use, so that loads of several arrays are under way together. Where all exist and
// lie aligned they move 16 bytes at a time.
namespace narrowgauge::optim::kernels {

template <typename Unit, int kUnits>
__device__ bool move_at_once(const Unit* at, int count) {
  constexpr int kBytes = kUnits * static_cast<int>(sizeof(Unit));
  return count == kUnits && reinterpret_cast<uintptr_t>(at) % (kBytes < 16 ? kBytes : 16) == 0;
}

// words: at least kUnits units; zeros behind the first `count`.
template <int kUnits, typename Unit>
__device__ void load_units(const Unit* from, int count, uint32_t* words) {
  constexpr int kBytes = kUnits * static_cast<int>(sizeof(Unit));
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(Unit));
  if (move_at_once<Unit, kUnits>(from, count)) {
    if constexpr (kBytes == 2) {
      words[0] = *reinterpret_cast<const uint16_t*>(from);
    } else if constexpr (kBytes == 4) {
      words[0] = *reinterpret_cast<const uint32_t*>(from);
    } else if constexpr (kBytes == 8) {
      const uint2 two = *reinterpret_cast<const uint2*>(from);
      words[0] = two.x;
      words[1] = two.y;
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) {
        const uint4 four = reinterpret_cast<const uint4*>(from)[i];
        words[4 * i] = four.x;
        words[4 * i + 1] = four.y;
        words[4 * i + 2] = four.z;
        words[4 * i + 3] = four.w;
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < (kUnits + kPerWord - 1) / kPerWord; ++i) {
    words[i] = 0;
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (i < count) {
      words[i / kPerWord] |= static_cast<uint32_t>(from[i]) << i % kPerWord * 8 * sizeof(Unit);
    }
  }
}

// The first `count` units of words.
template <int kUnits, typename Unit>
__device__ void store_units(Unit* to, int count, const uint32_t* words) {
  constexpr int kBytes = kUnits * static_cast<int>(sizeof(Unit));
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(Unit));
  if (move_at_once<Unit, kUnits>(to, count)) {
    if constexpr (kBytes == 2) {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(words[0]);
    } else if constexpr (kBytes == 4) {
      *reinterpret_cast<uint32_t*>(to) = words[0];
    } else if constexpr (kBytes == 8) {
      *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) {
        reinterpret_cast<uint4*>(to)[i] =
            make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (i < count) {
      to[i] = static_cast<Unit>(words[i / kPerWord] >> i % kPerWord * 8 * sizeof(Unit));
    }
  }
}

// fp32 or bf16.
template <int kCount>
__device__ void load_floats(const void* data, bool is_bf16, int64_t at, int count,
                            uint32_t (&words)[kCount]) {
  if (is_bf16) {
    load_units<kCount>(static_cast<const uint16_t*>(data) + at, count, words);
  } else {
    load_units<kCount>(static_cast<const uint32_t*>(data) + at, count, words);
  }
}

template <int kCount>
__device__ void unpack_floats(float (&values)[kCount], bool is_bf16,
                              const uint32_t (&words)[kCount]) {
  if (is_bf16) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      values[2 * i] = __uint_as_float(words[i] << 16);
      values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = __uint_as_float(words[i]);
    }
  }
}

template <int kCount>
__device__ void store_floats(void* data, bool is_bf16, int64_t at, int count,
                             const uint32_t (&words)[kCount]) {
  if (is_bf16) {
    store_units<kCount>(static_cast<uint16_t*>(data) + at, count, words);
  } else {
    store_units<kCount>(static_cast<uint32_t*>(data) + at, count, words);
  }
}

// bf16 to nearest even.
template <int kCount>
__device__ void pack_floats(uint32_t (&words)[kCount], bool is_bf16,
                            const float (&values)[kCount]) {
  if (is_bf16) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      words[i] = cuda::to_bf16x2(values[2 * i], values[2 * i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      words[i] = __float_as_uint(values[i]);
    }
  }
}

}  // namespace narrowgauge::optim::kernels
