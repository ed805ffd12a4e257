#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"
#include "qat/kernels/affine_fake_quantize.h"

// qat/kernels/affine_fake_quantize.h on a GPU: the same bits from the same arguments in device
// memory, enqueued on `stream`. uint16_t is bf16. There is no answer whether anything was clipped,
// which would wait for the device.
namespace narrowgauge::qat::kernels {

template <typename In, typename Out>
void fake_quantize_affine(const In* x, int64_t rows, int64_t cols, const AffineGrid& grid, Out* y,
                          uint64_t* clipped, cuda::StreamHandle stream);

template <typename T>
void zero_clipped(const uint64_t* clipped, int64_t rows, int64_t cols, T* grad,
                  cuda::StreamHandle stream);

}  // namespace narrowgauge::qat::kernels
