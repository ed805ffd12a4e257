#pragma once

#include "cuda/stream_handle.h"
#include "nn/kernels/rotary_embedding.h"

// nn/kernels/rotary_embedding.h on a GPU, for all rows [0, rows): the same arguments in device
// memory, enqueued on `stream`. T is float, or uint16_t for bf16.
namespace narrowgauge::nn::kernels {

template <typename T>
void split_and_rotate(const T* qkv, const QkvHeads<T>& out, const float* cos, const float* sin,
                      const QkvShape& shape, int64_t rows, cuda::StreamHandle stream);

template <typename T>
void rotate_back_and_join(const QkvHeads<const T>& grads, T* grad_qkv, const float* cos,
                          const float* sin, const QkvShape& shape, int64_t rows,
                          cuda::StreamHandle stream);

}  // namespace narrowgauge::nn::kernels
