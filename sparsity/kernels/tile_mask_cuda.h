#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"
#include "sparsity/kernels/tile_mask.h"

// sparsity/kernels/tile_mask.h and apply_mask on a GPU: the same arguments in device memory,
// enqueued on `stream`; the same masks to the last bit. T is float, or uint16_t for bf16.
namespace narrowgauge::sparsity::kernels {

// `masked`: [rows, cols], weight where it is kept, else 0; may be null.
template <typename T>
void tile_mask(const T* weight, int64_t rows, int64_t cols, TileAlgorithm algorithm, uint8_t* bits,
               T* masked, cuda::StreamHandle stream);

template <typename T>
void apply_mask(const T* weight, const uint8_t* mask, T* out, int64_t num_elements,
                cuda::StreamHandle stream);

}  // namespace narrowgauge::sparsity::kernels
