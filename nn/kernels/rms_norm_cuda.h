#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"

// nn/kernels/rms_norm.h on a GPU: the same arguments in device memory, enqueued on `stream`. T is
// float, or uint16_t for bf16. Sums run in an order that depends on the shape alone, so the bits
// are the same each time.
namespace narrowgauge::nn::kernels {

template <typename T>
void rms_norm(const T* x, const float* weight, T* y, float* rstd, int64_t rows, int64_t dim,
              float eps, cuda::StreamHandle stream);

template <typename T>
void add_rms_norm(const T* residual, const T* x, const float* weight, T* h, T* y, float* rstd,
                  int64_t rows, int64_t dim, float eps, cuda::StreamHandle stream);

// Rows of `partial` below: one a block of the grid.
int64_t rms_norm_backward_blocks(int64_t rows);

// grad_weight: [dim] out. partial: [rms_norm_backward_blocks(rows), dim] scratch.
template <typename T>
void rms_norm_backward(const T* grad_y, const T* grad_h, const T* x, const float* weight,
                       const float* rstd, T* grad_x, float* grad_weight, float* partial,
                       int64_t rows, int64_t dim, cuda::StreamHandle stream);

}  // namespace narrowgauge::nn::kernels
