#include "nn/kernels/dropout.h"

#include <algorithm>

#include "nn/kernels/vector_math.h"
#include "vectorize/philox.h"

// Compute-bound: a Philox block is 20 multiplications for 4 elements.

namespace narrowgauge::nn::kernels {
namespace {

constexpr int64_t kWordsPerBlock = 4;
constexpr int64_t kBlocksPerBatch = 128;

// out: [4 * num_blocks]
NG_TARGET_CLONES void fill_factors(float* __restrict out, uint64_t first_block, int64_t num_blocks,
                                   DropoutFactors factors) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const vectorize::PhiloxWords words =
        vectorize::philox(first_block + static_cast<uint64_t>(i), factors.step, factors.key);
    for (int64_t j = 0; j < kWordsPerBlock; ++j) {
      out[4 * i + j] = words.word[j] < factors.threshold ? factors.dropped : factors.kept;
    }
  }
}

template <typename T>
void multiply(const T* x, T* out, int64_t first, int64_t count, DropoutFactors of) {
  float factors[kWordsPerBlock * kBlocksPerBatch];
  const int64_t end = first + count;
  for (int64_t at = first; at < end;) {
    const int64_t block = at / kWordsPerBlock;
    const int64_t blocks_left = (end + kWordsPerBlock - 1) / kWordsPerBlock - block;
    const int64_t num_blocks = std::min(kBlocksPerBatch, blocks_left);
    fill_factors(factors, static_cast<uint64_t>(block), num_blocks, of);
    const int64_t stop = std::min(end, (block + num_blocks) * kWordsPerBlock);
    for (; at < stop; ++at) {
      out[at - first] =
          from_float<T>(to_float(x[at - first]) * factors[at - block * kWordsPerBlock]);
    }
  }
}

}  // namespace

void dropout(const float* x, float* out, int64_t first, int64_t count, DropoutFactors factors) {
  multiply(x, out, first, count, factors);
}

void dropout(const uint16_t* x, uint16_t* out, int64_t first, int64_t count,
             DropoutFactors factors) {
  multiply(x, out, first, count, factors);
}

}  // namespace narrowgauge::nn::kernels
