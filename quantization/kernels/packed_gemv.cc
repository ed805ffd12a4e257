#include "quantization/kernels/packed_gemv.h"

#include <algorithm>
#include <bit>

#include "vectorize/bfloat16.h"
#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Note: half blocks
//
// Everything works on half blocks of kLanes = 16 codes, so that 16 sums run side by side and a
// group of 16 (NVFP4) has a scale of its own: the halves of a 4-bit byte lie in different half
// blocks. The sums of a group are scaled when it ends; the 16 sums of a row are added when it ends.
//
// Intrinsics for AVX-512, since GCC looks up no table of 16 floats in a register from a loop.
namespace narrowgauge::quantization::kernels {
namespace {

constexpr int64_t kLanes = kBlock / 2;

// Decoders of one code, for the portable path.

struct Int4Value {
  NG_INLINE static float value(uint32_t code) {
    return static_cast<float>(static_cast<int>(code) - 8);
  }
};

struct Int8Value {
  NG_INLINE static float value(uint32_t code) {
    return static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(code)));
  }
};

// The bits of a narrow float, moved to where fp32 has exponent and mantissa, are its value times a
// power of two, which the exponents' biases differ by; so are those of subnormal ones.
template <int kBits, int kShift, uint32_t kScaleBits>
struct NarrowFloatValue {
  NG_INLINE static float value(uint32_t code) {
    constexpr uint32_t kSign = 1U << (kBits - 1);
    const uint32_t bits = ((code & kSign) << (32 - kBits)) | ((code & (kSign - 1)) << kShift);
    return std::bit_cast<float>(bits) * std::bit_cast<float>(kScaleBits);
  }
};
constexpr uint32_t kTwoTo126 = (127U + 126U) << 23;
constexpr uint32_t kTwoTo120 = (127U + 120U) << 23;
constexpr uint32_t kTwoTo112 = (127U + 112U) << 23;
using E2m1Value = NarrowFloatValue<4, 22, kTwoTo126>;
using E4m3Value = NarrowFloatValue<8, 20, kTwoTo120>;
using E5m2Value = NarrowFloatValue<8, 21, kTwoTo112>;

template <typename Value, bool kTwoInAByte>
struct Decoder {
  using Scalar = Value;
  static constexpr bool two_in_a_byte = kTwoInAByte;
  static constexpr int64_t bytes = kTwoInAByte ? kBlock / 2 : kBlock;

  NG_INLINE static void decode(const uint8_t* codes, float* low, float* high) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if constexpr (kTwoInAByte) {
        low[lane] = Value::value(codes[lane] & 15U);
        high[lane] = Value::value(codes[lane] >> 4);
      } else {
        low[lane] = Value::value(codes[lane]);
        high[lane] = Value::value(codes[lane + kLanes]);
      }
    }
  }
};

using Int4 = Decoder<Int4Value, true>;
using E2m1 = Decoder<E2m1Value, true>;
using Int8 = Decoder<Int8Value, false>;
using E4m3 = Decoder<E4m3Value, false>;
using E5m2 = Decoder<E5m2Value, false>;

// Calls body(Decoder{}) for the format.
template <typename Body>
NG_INLINE void with_decoder(CodeFormat format, const Body& body) {
  switch (format) {
    case CodeFormat::kInt4:
      return body(Int4{});
    case CodeFormat::kE2m1:
      return body(E2m1{});
    case CodeFormat::kInt8:
      return body(Int8{});
    case CodeFormat::kE4m3:
      return body(E4m3{});
    case CodeFormat::kE5m2:
      return body(E5m2{});
  }
}

NG_INLINE int64_t group_of_half(const PackedRows& w, int64_t block, int64_t half) {
  return (block * kBlock + half * kLanes) / w.group_size;
}

// sum over groups of offset * (sum of the group's x).
NG_INLINE float offset_sum(const PackedRows& w, const GemvInput& input, int64_t token,
                           int64_t row) {
  if (w.offset == nullptr) {
    return 0.0F;
  }
  const float* offsets = w.offset + row * w.num_groups;
  const float* sums = input.group_sums + token * w.num_groups;
  float lanes[kLanes] = {};
  int64_t group = 0;
  for (; group + kLanes <= w.num_groups; group += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += offsets[group + lane] * sums[group + lane];
    }
  }
  float total = 0;
  for (; group < w.num_groups; ++group) {
    total += offsets[group] * sums[group];
  }
  for (const float lane : lanes) {
    total += lane;
  }
  return total;
}

template <typename Format>
NG_INLINE void portable_row(const PackedRows& w, const GemvInput& input, int64_t row, float* y,
                            int64_t y_stride) {
  const uint8_t* codes = w.codes + row * w.num_blocks * Format::bytes;
  const float* scale = w.scale + row * w.num_groups;
  float sums[kMaxGemvTokens][kLanes] = {};
  for (int64_t block = 0; block < w.num_blocks; ++block) {
    float low[kLanes];
    float high[kLanes];
    Format::decode(codes + block * Format::bytes, low, high);
    const float low_scale = scale[group_of_half(w, block, 0)];
    const float high_scale = scale[group_of_half(w, block, 1)];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      low[lane] *= low_scale;
      high[lane] *= high_scale;
    }
    for (int64_t token = 0; token < input.num_tokens; ++token) {
      const float* x = input.x + (token * w.num_blocks + block) * kBlock;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        sums[token][lane] += low[lane] * x[lane] + high[lane] * x[lane + kLanes];
      }
    }
  }
  for (int64_t token = 0; token < input.num_tokens; ++token) {
    float total = offset_sum(w, input, token, row);
    for (const float sum : sums[token]) {
      total += sum;
    }
    y[token * y_stride + row] = total;
  }
}

template <typename Format>
NG_INLINE void portable_rows(const PackedRows& w, const GemvInput& input, int64_t first_row,
                             int64_t last_row, float* y, int64_t y_stride) {
  for (int64_t row = first_row; row < last_row; ++row) {
    portable_row<Format>(w, input, row, y, y_stride);
  }
}

template <typename T>
NG_INLINE void unpack(const PackedRows& w, int64_t first_row, int64_t last_row, T* out) {
  with_decoder(w.format, [&]<typename Format>(Format) NG_INLINE_LAMBDA {
    for (int64_t row = first_row; row < last_row; ++row) {
      const uint8_t* codes = w.codes + row * w.num_blocks * Format::bytes;
      const float* scale = w.scale + row * w.num_groups;
      const float* offset = w.offset == nullptr ? nullptr : w.offset + row * w.num_groups;
      for (int64_t block = 0; block < w.num_blocks; ++block) {
        float half[2][kLanes];
        Format::decode(codes + block * Format::bytes, half[0], half[1]);
        for (int64_t h = 0; h < 2; ++h) {
          const int64_t group = group_of_half(w, block, h);
          const float s = scale[group];
          const float o = offset == nullptr ? -0.0F : offset[group];  // keeps the sign of zeros
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            *out++ = vectorize::from_float<T>(half[h][lane] * s + o);
          }
        }
      }
    }
  });
}

}  // namespace

NG_TARGET_CLONES
void packed_gemv_portable(const PackedRows& w, const GemvInput& input, int64_t first_row,
                          int64_t last_row, float* y, int64_t y_stride) {
  with_decoder(w.format, [&]<typename Format>(Format) NG_INLINE_LAMBDA {
    portable_rows<Format>(w, input, first_row, last_row, y, y_stride);
  });
}

NG_TARGET_CLONES
void unpack_rows(const PackedRows& w, int64_t first_row, int64_t last_row, float* out) {
  unpack(w, first_row, last_row, out);
}

NG_TARGET_CLONES
void unpack_rows(const PackedRows& w, int64_t first_row, int64_t last_row, uint16_t* out) {
  unpack(w, first_row, last_row, out);
}

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

namespace {

// What a format's decode needs in registers, and 16 codes as floats.
template <typename Format>
struct VectorDecoder {
  __m512 table;

  NG_INLINE VectorDecoder() {
    alignas(64) float values[kLanes];
    for (uint32_t code = 0; code < kLanes; ++code) {
      values[code] = Format::Scalar::value(code);
    }
    table = _mm512_load_ps(values);
  }

  NG_INLINE void decode(const uint8_t* codes, __m512& low, __m512& high) const {
    // vpermps looks at the lower four bits of an index alone.
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    low = _mm512_permutexvar_ps(bytes, table);
    high = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table);
  }
};

NG_INLINE __m512 int8_values(const uint8_t* codes) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
}

template <int kShift, uint32_t kScaleBits>
NG_INLINE __m512 float8_values(const uint8_t* codes) {
  // Widened with its sign, a code has the sign where fp32 has it.
  const __m512i wide =
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const __m512i keep = _mm512_set1_epi32(static_cast<int>(0x80000000U | (0x7fU << kShift)));
  const __m512i bits = _mm512_and_si512(_mm512_slli_epi32(wide, kShift), keep);
  return _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(std::bit_cast<float>(kScaleBits)));
}

template <>
struct VectorDecoder<Int8> {
  NG_INLINE void decode(const uint8_t* codes, __m512& low, __m512& high) const {
    low = int8_values(codes);
    high = int8_values(codes + kLanes);
  }
};

template <>
struct VectorDecoder<E4m3> {
  NG_INLINE void decode(const uint8_t* codes, __m512& low, __m512& high) const {
    low = float8_values<20, kTwoTo120>(codes);
    high = float8_values<20, kTwoTo120>(codes + kLanes);
  }
};

template <>
struct VectorDecoder<E5m2> {
  NG_INLINE void decode(const uint8_t* codes, __m512& low, __m512& high) const {
    low = float8_values<21, kTwoTo112>(codes);
    high = float8_values<21, kTwoTo112>(codes + kLanes);
  }
};

// kRows rows together, so that enough sums are under way to hide the additions' latency.
template <typename Format, int kRows, int kTokens>
NG_INLINE void vector_rows(const PackedRows& w, const GemvInput& input, int64_t row, float* y,
                           int64_t y_stride) {
  const VectorDecoder<Format> decoder;
  const int64_t row_bytes = w.num_blocks * Format::bytes;
  const uint8_t* codes = w.codes + row * row_bytes;
  const float* scale = w.scale + row * w.num_groups;
  const int64_t blocks_of_group = w.group_size / kBlock;  // 0: a half block is a group
  __m512 sums[kRows][kTokens];
  for (auto& of_row : sums) {
    for (__m512& sum : of_row) {
      sum = _mm512_setzero_ps();
    }
  }
  int64_t block = 0;
  for (int64_t group = 0; block < w.num_blocks; group += blocks_of_group == 0 ? 2 : 1) {
    const int64_t end = std::min(w.num_blocks, block + std::max<int64_t>(1, blocks_of_group));
    const int64_t high_group = blocks_of_group == 0 ? group + 1 : group;
    __m512 low_sums[kRows][kTokens];
    __m512 high_sums[kRows][kTokens];
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) {
        low_sums[r][t] = _mm512_setzero_ps();
        high_sums[r][t] = _mm512_setzero_ps();
      }
    }
    for (; block < end; ++block) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        __m512 low;
        __m512 high;
        decoder.decode(codes + r * row_bytes + block * Format::bytes, low, high);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          const float* x = input.x + (t * w.num_blocks + block) * kBlock;
          low_sums[r][t] = _mm512_fmadd_ps(low, _mm512_loadu_ps(x), low_sums[r][t]);
          high_sums[r][t] = _mm512_fmadd_ps(high, _mm512_loadu_ps(x + kLanes), high_sums[r][t]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512 low_scale = _mm512_set1_ps(scale[r * w.num_groups + group]);
      const __m512 high_scale = _mm512_set1_ps(scale[r * w.num_groups + high_group]);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        sums[r][t] = _mm512_fmadd_ps(low_sums[r][t], low_scale, sums[r][t]);
        sums[r][t] = _mm512_fmadd_ps(high_sums[r][t], high_scale, sums[r][t]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) {
      y[t * y_stride + row + r] =
          _mm512_reduce_add_ps(sums[r][t]) + offset_sum(w, input, t, row + r);
    }
  }
}

template <typename Format, int kTokens>
NG_INLINE void vector_all_rows(const PackedRows& w, const GemvInput& input, int64_t first_row,
                               int64_t last_row, float* y, int64_t y_stride) {
  constexpr int kRows = kTokens == 1 ? 4 : 2;
  int64_t row = first_row;
  for (; row + kRows <= last_row; row += kRows) {
    vector_rows<Format, kRows, kTokens>(w, input, row, y, y_stride);
  }
  for (; row < last_row; ++row) {
    vector_rows<Format, 1, kTokens>(w, input, row, y, y_stride);
  }
}

void packed_gemv_avx512(const PackedRows& w, const GemvInput& input, int64_t first_row,
                        int64_t last_row, float* y, int64_t y_stride) {
  with_decoder(w.format, [&]<typename Format>(Format) {
    switch (input.num_tokens) {
      case 1:
        return vector_all_rows<Format, 1>(w, input, first_row, last_row, y, y_stride);
      case 2:
        return vector_all_rows<Format, 2>(w, input, first_row, last_row, y, y_stride);
      case 3:
        return vector_all_rows<Format, 3>(w, input, first_row, last_row, y, y_stride);
      default:
        return vector_all_rows<Format, 4>(w, input, first_row, last_row, y, y_stride);
    }
  });
}

}  // namespace

#pragma GCC pop_options

void packed_gemv(const PackedRows& w, const GemvInput& input, int64_t first_row, int64_t last_row,
                 float* y, int64_t y_stride) {
  const bool has_avx512 = __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  (has_avx512 ? packed_gemv_avx512 : packed_gemv_portable)(w, input, first_row, last_row, y,
                                                           y_stride);
}

#else

void packed_gemv(const PackedRows& w, const GemvInput& input, int64_t first_row, int64_t last_row,
                 float* y, int64_t y_stride) {
  packed_gemv_portable(w, input, first_row, last_row, y, y_stride);
}

#endif

}  // namespace narrowgauge::quantization::kernels
