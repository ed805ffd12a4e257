#include "optim/kernels/adamw.h"

#include "vectorize/target_clones.h"

// Traffic: 28 bytes an element (param, exp_avg, exp_avg_sq read and written, grad read).
//
// The order of operations is that of torch 2.11's FusedAdamKernel.cpp as GCC compiled it for AVX2:
// which product is fused into which addition is part of the result. Therefore fused
// multiply-adds are written out here and -ffp-contract=off forbids any other. The remainder of a
// tensor (count % 8) fuses the other product of v's update; its other operations agree.

namespace narrowgauge::optim::kernels {
namespace {

template <bool kIsRemainder>
NG_INLINE void update(float* param, float grad, float* exp_avg, float* exp_avg_sq,
                      const AdamWCoefficients& c) {
  const float scaled = grad * c.gradient_scale;
  const float g = c.l2_decay != 0.0F ? __builtin_fmaf(*param, c.l2_decay, scaled) : scaled;
  const float p = *param * c.decay;
  const float difference = g - *exp_avg;
  // at::lerp's two forms: each is exact at the nearer end.
  const float m = c.grad_weight < 0.5F ? __builtin_fmaf(c.grad_weight, difference, *exp_avg)
                                       : __builtin_fmaf(c.grad_weight - 1.0F, difference, g);
  const float weighted = c.grad_sq_weight * g;
  const float v = kIsRemainder ? __builtin_fmaf(*exp_avg_sq, c.beta2, weighted * g)
                               : __builtin_fmaf(weighted, g, *exp_avg_sq * c.beta2);
  const float denominator = __builtin_sqrtf(v) / c.correction_sqrt + c.eps;
  *exp_avg = m;
  *exp_avg_sq = v;
  *param = p + c.negative_step * m / denominator;
}

}  // namespace

NG_TARGET_CLONES void adamw(float* __restrict param, const float* __restrict grad,
                            float* __restrict exp_avg, float* __restrict exp_avg_sq, int64_t count,
                            const AdamWCoefficients& coefficients) {
  const AdamWCoefficients c = coefficients;
  const int64_t body = count - count % kAdamWLanes;
  for (int64_t i = 0; i < body; ++i) {
    update<false>(param + i, grad[i], exp_avg + i, exp_avg_sq + i, c);
  }
  for (int64_t i = body; i < count; ++i) {
    update<true>(param + i, grad[i], exp_avg + i, exp_avg_sq + i, c);
  }
}

}  // namespace narrowgauge::optim::kernels
