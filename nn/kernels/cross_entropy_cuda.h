#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"

// nn/kernels/cross_entropy.h on a GPU: the same arguments in device memory, enqueued on `stream`. T
// is float, or uint16_t for bf16. A target outside of [0, vocab) cannot be reported from here: its
// row gets a NaN loss and a NaN gradient.
namespace narrowgauge::nn::kernels {

template <typename T>
void cross_entropy(const T* logits, const int64_t* targets, float* log_sum_exp, float* loss,
                   int64_t rows, int64_t vocab, int64_t ignore_index, cuda::StreamHandle stream);

// out: [1], the sum of loss: [rows], in fp64 in an order that depends on rows alone.
void sum_loss(const float* loss, float* out, int64_t rows, cuda::StreamHandle stream);

// grad_loss: [1]. grad_logits may be logits.
template <typename T>
void cross_entropy_backward(const T* logits, const int64_t* targets, const float* log_sum_exp,
                            const float* grad_loss, T* grad_logits, int64_t rows, int64_t vocab,
                            int64_t ignore_index, cuda::StreamHandle stream);

}  // namespace narrowgauge::nn::kernels
