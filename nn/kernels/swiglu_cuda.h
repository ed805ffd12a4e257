#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"

// nn/kernels/swiglu.h on a GPU: the same arguments in device memory, enqueued on `stream`. T is
// float, or uint16_t for bf16.
namespace narrowgauge::nn::kernels {

template <typename T>
void swiglu(const T* gate_up, T* out, int64_t rows, int64_t ffn, cuda::StreamHandle stream);

template <typename T>
void swiglu_backward(const T* grad_out, const T* gate_up, T* grad_gate_up, int64_t rows,
                     int64_t ffn, cuda::StreamHandle stream);

}  // namespace narrowgauge::nn::kernels
