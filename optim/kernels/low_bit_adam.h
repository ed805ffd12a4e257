#pragma once

#include <cstdint>

namespace narrowgauge::optim::kernels {

// The stages of one Adam step over a piece of a parameter that stays in the first cache level. Each
// operation is rounded on its own, as torchao's compiled step does.

// One step's numbers, rounded to fp32.
struct LowBitAdamCoefficients {
  float gradient_scale = 1.0F;
  float decoupled_decay = 0.0F;  // lr * weight_decay, of AdamW
  float l2_decay = 0.0F;         // weight_decay, of Adam: added to the gradient
  float grad_weight = 0.0F;      // 1 - beta1
  float grad_sq_weight = 0.0F;   // 1 - beta2
  float correction1 = 1.0F;      // 1 - beta1^t
  float correction_sqrt = 1.0F;  // sqrt(1 - beta2^t)
  float eps = 0.0F;
  float lr = 0.0F;
};

// Bits of the largest magnitudes; NaN counts as largest.
struct MomentMaxima {
  uint32_t exp_avg = 0;
  uint32_t exp_avg_sq = 0;
};

// exp_avg, exp_avg_sq: [count] in/out, lerp towards g and g * g with
// g = grad * gradient_scale + l2_decay * param.
MomentMaxima update_moments(float* exp_avg, float* exp_avg_sq, const float* grad,
                            const float* param, int64_t count, const LowBitAdamCoefficients& c);

// param: [count] in/out
//   p <- (p - decoupled_decay p) - lr (m / correction1) / (sqrt(v) / correction_sqrt + eps)
void update_param(float* param, const float* exp_avg, const float* exp_avg_sq, int64_t count,
                  const LowBitAdamCoefficients& c);

// bf16 to fp32 and back, to nearest even.
void widen(float* out, const uint16_t* x, int64_t count);
void narrow(uint16_t* out, const float* x, int64_t count);

// Random bits of one parameter in one step: a pure function of these and the element's index.
struct RoundingStream {
  uint64_t key = 0;
  uint64_t step = 0;
};

// bf16 by stochastic rounding; element i has index first + i of the whole parameter.
void narrow_stochastic(uint16_t* out, const float* x, int64_t first, int64_t count,
                       RoundingStream stream);

}  // namespace narrowgauge::optim::kernels
