#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace narrowgauge::nn {

// scale * cross_entropy_sum(x weight^T, targets): the head and the training loss in one, in which
// no tensor of all logits exists. x: [N, dim], weight: [V, dim], one dtype, bf16 or fp32; targets:
// [N] as for cross_entropy_sum. Returns a 0-dim fp32 tensor. Differentiable once.
//
// On a CPU forward computes logits for a chunk of rows at a time (nn/loss_chunk.h) and, where a
// gradient is wanted, turns them in place into their own gradient and multiplies on to those of x
// and weight, which it keeps until backward: so backward of the loss itself computes nothing. Give
// the factor that the loss is multiplied by as `scale`, rather than after the call, and gradients
// are rounded as often as without the fusion: once each. weight's gradient is summed over chunks in
// fp32. Other devices and dtypes compute all logits.
at::Tensor linear_cross_entropy_sum(const at::Tensor& x, const at::Tensor& weight,
                                    const at::Tensor& targets, double scale = 1.0,
                                    int64_t ignore_index = -100);

}  // namespace narrowgauge::nn
