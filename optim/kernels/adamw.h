#pragma once

#include <cstdint>

namespace narrowgauge::optim::kernels {

// One step's numbers, rounded to fp32 from fp64.
struct AdamWCoefficients {
  float gradient_scale = 1.0F;
  float decay = 1.0F;        // 1 - lr * weight_decay (AdamW)
  float l2_decay = 0.0F;     // weight_decay, added to the gradient (Adam)
  float grad_weight = 0.0F;  // 1 - beta1
  float beta2 = 0.0F;
  float grad_sq_weight = 0.0F;   // 1 - beta2
  float correction_sqrt = 1.0F;  // sqrt(1 - beta2^t)
  float eps = 0.0F;
  float negative_step = 0.0F;  // -lr / (1 - beta1^t)
};

// torch's kernel takes 8 elements at a time and rounds the remainder of a tensor differently.
inline constexpr int64_t kAdamWLanes = 8;

// param, exp_avg, exp_avg_sq: [count] in/out; grad: [count] in. The last count % kAdamWLanes
// elements are treated as the end of a tensor: split a tensor at multiples of kAdamWLanes.
void adamw(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t count,
           const AdamWCoefficients& coefficients);

}  // namespace narrowgauge::optim::kernels
