#include "nn/kernels/normal_init.h"

#include <algorithm>

#include "nn/kernels/vector_math.h"
#include "vectorize/philox.h"

// One Philox block (4 words) gives 4 normals: two Box-Muller pairs. Compute-bound. Built with
// -ffp-contract=off: with every operation rounded the same way, all clones agree.

namespace narrowgauge::nn::kernels {
namespace {

constexpr int64_t kValuesPerBlock = 4;
constexpr int64_t kBlocksPerBatch = 128;

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
    const vectorize::PhiloxWords words =
        vectorize::philox(first_block + static_cast<uint64_t>(i), stream.seed, stream.key);
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
