#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace narrowgauge::nn {

// Knowledge distillation (Hinton et al. 2015): the loss of a token with student logits z, teacher
// logits t and target y is
//
//   (1 - weight) CE(softmax(z), y) + weight T^2 KL(softmax(t / T) || softmax(z / T))
//
// over the whole vocabulary. T^2 keeps gradients' size, since those of the second part shrink with
// 1 / T^2.
struct DistillationOptions {
  double weight = 1.0;       // in [0, 1]
  double temperature = 1.0;  // above 0
};

// What gives a teacher's logits: x weight^T.
struct TeacherHead {
  at::Tensor x;       // [N, dim of the teacher], no gradient
  at::Tensor weight;  // [V, dim of the teacher]
};

// scale * the sum of that loss over valid targets, as linear_cross_entropy_sum, and like it in
// chunks of rows: logits of neither model exist beyond one. x: [N, dim], weight: [V, dim], one
// dtype (bf16 or fp32) with the teacher's; targets: [N], ignore_index for a row without one, whose
// loss and gradient are 0. Returns a 0-dim fp32 tensor (fp64 for fp64). Gradients are computed in
// forward and kept; weight's is summed over chunks in fp32. Differentiable once. On a CPU a fused
// kernel, on other devices and for other dtypes ATen operators.
at::Tensor linear_distillation_sum(const at::Tensor& x, const at::Tensor& weight,
                                   const TeacherHead& teacher, const at::Tensor& targets,
                                   const DistillationOptions& options, double scale = 1.0,
                                   int64_t ignore_index = -100);

// The same of logits [N, V] that are there already, those of a converted head; they keep their
// values.
at::Tensor distillation_sum(const at::Tensor& logits, const TeacherHead& teacher,
                            const at::Tensor& targets, const DistillationOptions& options,
                            double scale = 1.0, int64_t ignore_index = -100);

}  // namespace narrowgauge::nn
