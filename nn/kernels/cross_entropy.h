#pragma once

#include <cstdint>

// T is float, or uint16_t for bf16. logits: [rows, vocab], contiguous; targets: [rows], in
// [0, vocab) or ignore_index.
namespace narrowgauge::nn::kernels {

// log_sum_exp, loss: [rows] out; a row to ignore has 0 in both.
void cross_entropy(const float* logits, const int64_t* targets, float* log_sum_exp, float* loss,
                   int64_t rows, int64_t vocab, int64_t ignore_index);
void cross_entropy(const uint16_t* logits, const int64_t* targets, float* log_sum_exp, float* loss,
                   int64_t rows, int64_t vocab, int64_t ignore_index);

// The same without log_sum_exp.
void cross_entropy_loss(const float* logits, const int64_t* targets, float* loss, int64_t rows,
                        int64_t vocab, int64_t ignore_index);
void cross_entropy_loss(const uint16_t* logits, const int64_t* targets, float* loss, int64_t rows,
                        int64_t vocab, int64_t ignore_index);

// Loss and gradient in one: logits become (softmax - onehot) * grad_loss, zero in a row to ignore.
void cross_entropy_to_gradient(float* logits, const int64_t* targets, float* loss, float grad_loss,
                               int64_t rows, int64_t vocab, int64_t ignore_index);
void cross_entropy_to_gradient(uint16_t* logits, const int64_t* targets, float* loss,
                               float grad_loss, int64_t rows, int64_t vocab, int64_t ignore_index);

// grad_logits = (softmax - onehot) * grad_loss, zero in a row to ignore.
void cross_entropy_backward(const float* logits, const int64_t* targets, const float* log_sum_exp,
                            float grad_loss, float* grad_logits, int64_t rows, int64_t vocab,
                            int64_t ignore_index);
void cross_entropy_backward(const uint16_t* logits, const int64_t* targets,
                            const float* log_sum_exp, float grad_loss, uint16_t* grad_logits,
                            int64_t rows, int64_t vocab, int64_t ignore_index);

}  // namespace narrowgauge::nn::kernels
