#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"

// nn/kernels/swiglu.h on a GPU: the same arguments in device memory, enqueued on `stream`. T is
// float, or uint16_t for bf16. amax: null, or one fp32, out: the largest magnitude of what is
// written, as it is stored; NaN if there is one.
namespace narrowgauge::nn::kernels {

template <typename T>
void swiglu(const T* gate_up, T* out, int64_t rows, int64_t ffn, float* amax,
            cuda::StreamHandle stream);

template <typename T>
void swiglu_backward(const T* grad_out, const T* gate_up, T* grad_gate_up, int64_t rows,
                     int64_t ffn, float* amax, cuda::StreamHandle stream);

}  // namespace narrowgauge::nn::kernels
