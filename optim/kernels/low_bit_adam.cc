#include "optim/kernels/low_bit_adam.h"

#include <algorithm>
#include <bit>

#include "vectorize/bfloat16.h"
#include "vectorize/philox.h"

// Built with -ffp-contract=off: a fused multiply-add would round once where torchao rounds twice.

namespace narrowgauge::optim::kernels {
namespace {

constexpr int64_t kRandomsPerBlock = 8;  // 16 bits each, of one Philox block
constexpr int64_t kBlocksPerBatch = 32;

// torch.lerp as torch.compile lowers it: exact at the nearer end.
struct Lerp {
  float coefficient;
  bool from_end;
  explicit Lerp(float weight)
      : coefficient(weight >= 0.5F ? weight - 1.0F : weight), from_end(weight >= 0.5F) {}
  NG_INLINE float operator()(float start, float end) const {
    return coefficient * (end - start) + (from_end ? end : start);
  }
};

// randoms: [8 * num_blocks]
NG_TARGET_CLONES void fill_randoms(uint32_t* __restrict randoms, uint64_t first_block,
                                   int64_t num_blocks, RoundingStream stream) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const vectorize::PhiloxWords words =
        vectorize::philox(first_block + static_cast<uint64_t>(i), stream.step, stream.key);
    for (int64_t j = 0; j < 4; ++j) {
      randoms[kRandomsPerBlock * i + 2 * j] = words.word[j] & 0xffffU;
      randoms[kRandomsPerBlock * i + 2 * j + 1] = words.word[j] >> 16;
    }
  }
}

NG_TARGET_CLONES void narrow_with(uint16_t* __restrict out, const float* __restrict x,
                                  const uint32_t* __restrict randoms, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = vectorize::from_float_stochastic(x[i], randoms[i]);
  }
}

}  // namespace

NG_TARGET_CLONES MomentMaxima update_moments(float* __restrict exp_avg,
                                             float* __restrict exp_avg_sq,
                                             const float* __restrict grad,
                                             const float* __restrict param, int64_t count,
                                             const LowBitAdamCoefficients& coefficients) {
  const LowBitAdamCoefficients c = coefficients;
  const Lerp lerp_avg(c.grad_weight);
  const Lerp lerp_sq(c.grad_sq_weight);
  int32_t max_avg = 0;
  int32_t max_sq = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float scaled = grad[i] * c.gradient_scale;
    // A decay of zero must leave alone what an infinite parameter would turn into NaN.
    const float g = c.l2_decay != 0.0F ? scaled + c.l2_decay * param[i] : scaled;
    const float m = lerp_avg(exp_avg[i], g);
    const float v = lerp_sq(exp_avg_sq[i], g * g);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    max_avg = std::max(max_avg, std::bit_cast<int32_t>(m) & 0x7fffffff);
    max_sq = std::max(max_sq, std::bit_cast<int32_t>(v) & 0x7fffffff);
  }
  return {static_cast<uint32_t>(max_avg), static_cast<uint32_t>(max_sq)};
}

NG_TARGET_CLONES void update_param(float* __restrict param, const float* __restrict exp_avg,
                                   const float* __restrict exp_avg_sq, int64_t count,
                                   const LowBitAdamCoefficients& coefficients) {
  const LowBitAdamCoefficients c = coefficients;
  for (int64_t i = 0; i < count; ++i) {
    const float decayed = param[i] - c.decoupled_decay * param[i];
    const float denominator = __builtin_sqrtf(exp_avg_sq[i]) / c.correction_sqrt + c.eps;
    param[i] = decayed - c.lr * (exp_avg[i] / c.correction1) / denominator;
  }
}

NG_TARGET_CLONES void widen(float* __restrict out, const uint16_t* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = vectorize::to_float(x[i]);
  }
}

NG_TARGET_CLONES void narrow(uint16_t* __restrict out, const float* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = vectorize::from_float<uint16_t>(x[i]);
  }
}

void narrow_stochastic(uint16_t* out, const float* x, int64_t first, int64_t count,
                       RoundingStream stream) {
  uint32_t randoms[kRandomsPerBlock * kBlocksPerBatch];
  const int64_t end = first + count;
  for (int64_t at = first; at < end;) {
    const int64_t block = at / kRandomsPerBlock;
    const int64_t blocks_left = (end + kRandomsPerBlock - 1) / kRandomsPerBlock - block;
    const int64_t num_blocks = std::min(kBlocksPerBatch, blocks_left);
    fill_randoms(randoms, static_cast<uint64_t>(block), num_blocks, stream);
    const int64_t stop = std::min(end, (block + num_blocks) * kRandomsPerBlock);
    narrow_with(out + (at - first), x + (at - first), randoms + (at - block * kRandomsPerBlock),
                stop - at);
    at = stop;
  }
}

}  // namespace narrowgauge::optim::kernels
