#include "optim/kernels/codebook_avx512.h"

#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Decoding: the 256 values lie in registers as four planes of bytes. Two byte permutations and a
// blend read one byte of 64 values, interleaving the planes makes floats of them.
//
// Encoding: no table of codes. See CodeLines in codebook.h: the rank of a magnitude is the least of
// three lines of its octave, in fixed point, unless it is within a unit of an integer.
//
// The forms of intrinsics with a mask of all ones: GCC 12 warns inside the plain ones.

namespace narrowgauge::optim::kernels {

#if defined(__x86_64__)

namespace {

#define NG_VBMI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")))

constexpr __mmask16 kAll = 0xffff;

struct Planes {
  __m512i byte[4][4];  // [of the float, quarter of the table]
};

NG_VBMI NG_INLINE Planes load_planes(const CodebookTable& table) {
  Planes planes;
  for (int b = 0; b < 4; ++b) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      planes.byte[b][quarter] = _mm512_loadu_si512(table.planes + 256 * b + 64 * quarter);
    }
  }
  return planes;
}

// out: [4] registers of 16 floats, in the order of the 64 codes.
NG_VBMI NG_INLINE void decode_64(__m512i* out, __m512i codes, const Planes& planes) {
  // Interleaving works within lanes of 128 bits; this makes up for it.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i index = _mm512_maskz_permutexvar_epi32(kAll, order, codes);
  const __mmask64 is_upper = _mm512_movepi8_mask(index);
  __m512i byte[4];
  for (int b = 0; b < 4; ++b) {
    const __m512i low = _mm512_permutex2var_epi8(planes.byte[b][0], index, planes.byte[b][1]);
    const __m512i high = _mm512_permutex2var_epi8(planes.byte[b][2], index, planes.byte[b][3]);
    byte[b] = _mm512_mask_blend_epi8(is_upper, low, high);
  }
  const __m512i low01 = _mm512_unpacklo_epi8(byte[0], byte[1]);
  const __m512i high01 = _mm512_unpackhi_epi8(byte[0], byte[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(byte[2], byte[3]);
  const __m512i high23 = _mm512_unpackhi_epi8(byte[2], byte[3]);
  out[0] = _mm512_unpacklo_epi16(low01, low23);
  out[1] = _mm512_unpackhi_epi16(low01, low23);
  out[2] = _mm512_unpacklo_epi16(high01, high23);
  out[3] = _mm512_unpackhi_epi16(high01, high23);
}

// CodeLines in registers.
struct Lines {
  __m512 slope[kCodeLines][2];
  __m512 offset[kCodeLines][2];
  __m512 peak_slope;
  __m512 peak_offset;
  __m512 smallest;
  __m512 reciprocal;  // of the scale
};

NG_VBMI NG_INLINE Lines load_lines(const CodeLines& lines, float scale) {
  Lines loaded;
  for (int k = 0; k < kCodeLines; ++k) {
    for (int half = 0; half < 2; ++half) {
      loaded.slope[k][half] = _mm512_loadu_ps(lines.slope[k] + 16 * half);
      loaded.offset[k][half] = _mm512_loadu_ps(lines.offset[k] + 16 * half);
    }
  }
  loaded.peak_slope = _mm512_set1_ps(lines.peak_slope);
  loaded.peak_offset = _mm512_set1_ps(lines.peak_offset);
  loaded.smallest = _mm512_set1_ps(lines.smallest);
  loaded.reciprocal = _mm512_set1_ps(1.0F / scale);
  return loaded;
}

// Ranks of 16 magnitudes in fixed point.
template <bool kSigned>
NG_VBMI NG_INLINE __m512i ranks_of(__m512 x, const Lines& lines) {
  constexpr int kLargerMagnitude = 0b1011;  // its sign cleared
  const __m512 scaled = _mm512_maskz_mul_ps(kAll, x, lines.reciprocal);
  const __m512 y = kSigned ? _mm512_maskz_range_ps(kAll, scaled, lines.smallest, kLargerMagnitude)
                           : _mm512_maskz_max_ps(kAll, scaled, lines.smallest);
  const __m512i octave = _mm512_maskz_srli_epi32(kAll, _mm512_castps_si512(y), 23);
  __m512 rank = _mm512_setzero_ps();
  for (int k = 0; k < kCodeLines; ++k) {
    const __m512 slope = _mm512_permutex2var_ps(lines.slope[k][0], octave, lines.slope[k][1]);
    const __m512 offset = _mm512_permutex2var_ps(lines.offset[k][0], octave, lines.offset[k][1]);
    const __m512 line = _mm512_fmadd_ps(slope, y, offset);
    rank = k == 0 ? line : _mm512_maskz_min_ps(kAll, rank, line);
  }
  const __m512 peak = _mm512_fmadd_ps(lines.peak_slope, y, lines.peak_offset);
  return _mm512_maskz_cvttps_epi32(kAll, _mm512_maskz_max_ps(kAll, rank, peak));
}

// The bytes of whole ranks, of 64 in fixed point.
NG_VBMI NG_INLINE __m512i whole_ranks(const __m512i (&fixed)[4]) {
  static_assert(kCodeLinesShift == 16);
  const __m512i third_bytes = _mm512_set_epi8(
      126, 122, 118, 114, 110, 106, 102, 98, 94, 90, 86, 82, 78, 74, 70, 66, 62, 58, 54, 50, 46, 42,
      38, 34, 30, 26, 22, 18, 14, 10, 6, 2, 126, 122, 118, 114, 110, 106, 102, 98, 94, 90, 86, 82,
      78, 74, 70, 66, 62, 58, 54, 50, 46, 42, 38, 34, 30, 26, 22, 18, 14, 10, 6, 2);
  const __m512i low = _mm512_permutex2var_epi8(fixed[0], third_bytes, fixed[1]);
  const __m512i high = _mm512_permutex2var_epi8(fixed[2], third_bytes, fixed[3]);
  return _mm512_mask_blend_epi64(0xf0, low, high);
}

// Codes of 64 values; `close` has a bit for each sixteen in which one is not certain.
template <bool kSigned>
NG_VBMI NG_INLINE __m512i encode_64(const float* x, const Lines& lines, const CodeLines& table,
                                    uint64_t& close) {
  __m512i fixed[4];
  __mmask64 is_negative = 0;
  close = 0;
  for (int k = 0; k < 4; ++k) {
    const __m512 values = _mm512_loadu_ps(x + 16 * k);
    fixed[k] = ranks_of<kSigned>(values, lines);
    const __m512i above =
        _mm512_maskz_add_epi32(kAll, fixed[k], _mm512_set1_epi32(kCodeLinesMargin));
    const __mmask16 is_close =
        _mm512_testn_epi32_mask(above, _mm512_set1_epi32(kCodeLinesOne - 2 * kCodeLinesMargin));
    close |= uint64_t{is_close != 0} << k;
    if (kSigned) {
      is_negative |= __mmask64{_mm512_movepi32_mask(_mm512_castps_si512(values))} << (16 * k);
    }
  }
  const __m512i rank = whole_ranks(fixed);
  if (!kSigned) {
    return rank;
  }
  const __m512i positive = _mm512_add_epi8(rank, _mm512_set1_epi8(static_cast<char>(table.zero)));
  const __m512i flipped =
      _mm512_xor_si512(rank, _mm512_set1_epi8(static_cast<char>(table.negative_flip)));
  const __m512i base = _mm512_set1_epi8(static_cast<char>(table.negative_base));
  return _mm512_mask_subs_epu8(positive, is_negative, base, flipped);
}

// Of at most 16 times 64 values. Returns which sixteens have one that is not certain. Not inlined:
// the lines would not stay in registers across the calls that handle those.
template <bool kSigned, bool kPacked>
NG_VBMI __attribute__((noinline)) uint64_t encode_many(uint8_t* __restrict codes,
                                                       const float* __restrict x, int64_t count,
                                                       float scale, const CodeLines& table) {
  const Lines lines = load_lines(table, scale);
  uint64_t close = 0;
  for (int64_t i = 0; i + 64 <= count; i += 64) {
    uint64_t close_here = 0;
    const __m512i code = encode_64<kSigned>(x + i, lines, table, close_here);
    close |= close_here << (i / 16);
    if (kPacked) {
      // A pair in 16 bits, the even one below: 16 times it and the odd one make a byte.
      const __m512i pairs = _mm512_maddubs_epi16(code, _mm512_set1_epi16(0x0110));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i / 2),
                          _mm512_maskz_cvtepi16_epi8(0xffffffff, pairs));
    } else {
      _mm512_storeu_si512(codes + i, code);
    }
  }
  return close;
}

template <bool kPacked>
int64_t encode_all(uint8_t* codes, const float* x, int64_t count, float scale,
                   const CodebookTable& table, EncodePiece encode_exactly) {
  constexpr int64_t kAtOnce = 1024;
  const auto encode =
      table.lines->is_signed ? encode_many<true, kPacked> : encode_many<false, kPacked>;
  const int64_t end = count / 64 * 64;
  for (int64_t first = 0; first < end; first += kAtOnce) {
    const int64_t now = end - first < kAtOnce ? end - first : kAtOnce;
    uint64_t close = encode(codes + first / (kPacked ? 2 : 1), x + first, now, scale, *table.lines);
    for (; close != 0; close &= close - 1) {
      const int64_t at = first + 16 * __builtin_ctzll(close);
      encode_exactly(codes + at / (kPacked ? 2 : 1), x + at, 16, scale, table);
    }
  }
  return end;
}

bool has_reciprocal(float scale) { return scale > 0x1p-100F && scale < 0x1p100F; }

}  // namespace

bool has_codebook_avx512() {
  return __builtin_cpu_supports("avx512vbmi") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0;
}

NG_VBMI int64_t decode_avx512(float* out, const uint8_t* codes, int64_t count, float scale,
                              const CodebookTable& table) {
  const Planes planes = load_planes(table);
  const __m512 scales = _mm512_set1_ps(scale);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    __m512i values[4];
    decode_64(values, _mm512_loadu_si512(codes + i), planes);
    for (int k = 0; k < 4; ++k) {
      const __m512 scaled = _mm512_maskz_mul_ps(kAll, _mm512_castsi512_ps(values[k]), scales);
      _mm512_storeu_ps(out + i + 16 * k, scaled);
    }
  }
  return i;
}

NG_VBMI int64_t decode_packed_avx512(float* out, const uint8_t* codes, int64_t count, float scale,
                                     const CodebookTable& table) {
  const __m512 values = _mm512_loadu_ps(table.values);
  const __m512 scales = _mm512_set1_ps(scale);
  // Element 2 i is in the upper half of byte i.
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  int64_t i = 0;
  for (; i + 32 <= count / 64 * 64; i += 32) {
    const __m512i pairs = _mm512_maskz_cvtepu8_epi32(
        kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2)));
    const __m512 odd = _mm512_maskz_permutexvar_ps(kAll, pairs, values);  // by the low four bits
    const __m512 even =
        _mm512_maskz_permutexvar_ps(kAll, _mm512_maskz_srli_epi32(kAll, pairs, 4), values);
    const __m512 low = _mm512_permutex2var_ps(even, first, odd);
    const __m512 high = _mm512_permutex2var_ps(even, second, odd);
    _mm512_storeu_ps(out + i, _mm512_maskz_mul_ps(kAll, low, scales));
    _mm512_storeu_ps(out + i + 16, _mm512_maskz_mul_ps(kAll, high, scales));
  }
  return i;
}

int64_t encode_avx512(uint8_t* codes, const float* x, int64_t count, float scale,
                      const CodebookTable& table, EncodePiece encode_exactly) {
  return has_reciprocal(scale) ? encode_all<false>(codes, x, count, scale, table, encode_exactly)
                               : 0;
}

int64_t encode_packed_avx512(uint8_t* codes, const float* x, int64_t count, float scale,
                             const CodebookTable& table, EncodePiece encode_exactly) {
  return has_reciprocal(scale) ? encode_all<true>(codes, x, count, scale, table, encode_exactly)
                               : 0;
}

#undef NG_VBMI

#else

bool has_codebook_avx512() { return false; }

int64_t decode_avx512(float*, const uint8_t*, int64_t, float, const CodebookTable&) { return 0; }

int64_t decode_packed_avx512(float*, const uint8_t*, int64_t, float, const CodebookTable&) {
  return 0;
}

int64_t encode_avx512(uint8_t*, const float*, int64_t, float, const CodebookTable&, EncodePiece) {
  return 0;
}

int64_t encode_packed_avx512(uint8_t*, const float*, int64_t, float, const CodebookTable&,
                             EncodePiece) {
  return 0;
}

#endif

}  // namespace narrowgauge::optim::kernels
