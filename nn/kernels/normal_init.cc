#include "nn/kernels/normal_init.h"

#include <algorithm>

#include "nn/kernels/vector_math.h"

// One Philox block (4 words) gives 4 normals: two Box-Muller pairs. Compute-bound. Built with
// -ffp-contract=off: with every operation rounded the same way, all clones agree.

namespace narrowgauge::nn::kernels {
namespace {

constexpr int64_t kValuesPerBlock = 4;
constexpr int64_t kBlocksPerBatch = 128;

struct Words {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), constants of the paper.
NG_INLINE Words philox(uint64_t block, NormalStream stream) {
  uint32_t c0 = static_cast<uint32_t>(block);
  uint32_t c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream.seed);
  uint32_t c3 = static_cast<uint32_t>(stream.seed >> 32);
  uint32_t k0 = static_cast<uint32_t>(stream.key);
  uint32_t k1 = static_cast<uint32_t>(stream.key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53U;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57U;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {{c0, c1, c2, c3}};
}

// Box-Muller: radius from `a`, angle from `b` (2 bits of quadrant, 30 of angle within it).
NG_INLINE CosSin normal_pair(uint32_t a, uint32_t b) {
  const float wide = static_cast<float>(static_cast<int32_t>(a >> 16)) * 65536.0F +
                     static_cast<float>(static_cast<int32_t>(a & 0xffffU));
  const float uniform = wide * 0x1p-32F + 0x1p-33F;  // (0, 1]
  const float square = -2.0F * log_f32(uniform);
  const float radius = __builtin_sqrtf(square > 0.0F ? square : 0.0F);
  constexpr float kQuarter = 0.78539816F * 0x1p-31F;  // the 30 bits span [-pi / 4, pi / 4)
  const CosSin unit = cos_sin_f32(static_cast<float>(static_cast<int32_t>(b << 2)) * kQuarter);
  const bool is_odd = (b & 0x40000000U) != 0;
  const bool is_lower = (b & 0x80000000U) != 0;
  const float x = radius * (is_odd ? unit.sin : unit.cos);
  const float y = radius * (is_odd ? unit.cos : unit.sin);
  return {is_odd != is_lower ? -x : x, is_lower ? -y : y};
}

// out: [4 * num_blocks]
NG_TARGET_CLONES void fill_blocks(float* __restrict out, uint64_t first_block, int64_t num_blocks,
                                  NormalStream stream, float mean, float std) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const Words words = philox(first_block + static_cast<uint64_t>(i), stream);
    const CosSin p = normal_pair(words.word[0], words.word[1]);
    const CosSin q = normal_pair(words.word[2], words.word[3]);
    out[4 * i + 0] = p.cos * std + mean;
    out[4 * i + 1] = p.sin * std + mean;
    out[4 * i + 2] = q.cos * std + mean;
    out[4 * i + 3] = q.sin * std + mean;
  }
}

template <typename T>
void fill(T* out, int64_t first, int64_t count, NormalStream stream, float mean, float std) {
  float values[kValuesPerBlock * kBlocksPerBatch];
  const int64_t end = first + count;
  for (int64_t at = first; at < end;) {
    const int64_t block = at / kValuesPerBlock;
    const int64_t blocks_left = (end + kValuesPerBlock - 1) / kValuesPerBlock - block;
    const int64_t num_blocks = std::min(kBlocksPerBatch, blocks_left);
    fill_blocks(values, static_cast<uint64_t>(block), num_blocks, stream, mean, std);
    const int64_t stop = std::min(end, (block + num_blocks) * kValuesPerBlock);
    for (; at < stop; ++at) {
      out[at - first] = from_float<T>(values[at - block * kValuesPerBlock]);
    }
  }
}

}  // namespace

void fill_normal(float* out, int64_t first, int64_t count, NormalStream stream, float mean,
                 float std) {
  fill(out, first, count, stream, mean, std);
}

void fill_normal(uint16_t* out, int64_t first, int64_t count, NormalStream stream, float mean,
                 float std) {
  fill(out, first, count, stream, mean, std);
}

}  // namespace narrowgauge::nn::kernels
