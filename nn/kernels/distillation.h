#pragma once

#include <cstdint>

// T is float, or uint16_t for bf16.
namespace narrowgauge::nn::kernels {

// How the loss of a row is put together: see nn/linear_distillation.h.
struct DistillationTerms {
  float hard = 0;         // weight of the cross entropy
  float soft = 1;         // of the divergence times temperature^2
  float temperature = 1;  // above 0
  float scale = 1;        // of the gradient alone
};

// Losses of rows, and their gradient in place of the student's logits; zero in a row to ignore.
// logits, teacher: [rows, vocab], contiguous; targets: [rows], in [0, vocab) or ignore_index;
// loss: [rows] out.
void distillation_to_gradient(float* logits, const float* teacher, const int64_t* targets,
                              float* loss, DistillationTerms terms, int64_t rows, int64_t vocab,
                              int64_t ignore_index);
void distillation_to_gradient(uint16_t* logits, const uint16_t* teacher, const int64_t* targets,
                              float* loss, DistillationTerms terms, int64_t rows, int64_t vocab,
                              int64_t ignore_index);

}  // namespace narrowgauge::nn::kernels
