#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"
#include "nn/kernels/dropout.h"

// nn/kernels/dropout.h on a GPU: the same arguments in device memory, enqueued on `stream`. T is
// float, or uint16_t for bf16.
namespace narrowgauge::nn::kernels {

template <typename T>
void dropout(const T* x, T* out, int64_t first, int64_t count, DropoutFactors factors,
             cuda::StreamHandle stream);

}  // namespace narrowgauge::nn::kernels
