#pragma once

#include <cstdint>
#include <span>

#include "cuda/stream_handle.h"
#include "optim/kernels/adamw.h"

namespace narrowgauge::optim::kernels {

// One parameter's update; all pointers are device memory of `count` elements. The gradient is fp32
// or bf16. decay, l2_decay and negative_step replace those of the common coefficients, since they
// depend on the parameter's group.
struct AdamWTensor {
  float* param = nullptr;
  const void* grad = nullptr;
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;
  int64_t count = 0;
  float decay = 1.0F;
  float l2_decay = 0.0F;
  float negative_step = 0.0F;
  bool is_grad_bf16 = false;
};

// The update of adamw.h for many parameters in few launches, enqueued on `stream`; the same bits
// as of gradients widened before. Each tensor is a whole one: its last count % kAdamWLanes elements
// are the remainder.
void adamw(std::span<const AdamWTensor> tensors, const AdamWCoefficients& coefficients,
           cuda::StreamHandle stream);

}  // namespace narrowgauge::optim::kernels
