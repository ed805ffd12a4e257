#pragma once

#include <ATen/core/Tensor.h>

#include "export/ggml_type.h"

namespace narrowgauge::exports {

// A quantized matrix apart from its file: what the bytes of its blocks say.
struct GgufBlocks {
  at::Tensor codes;  // [rows, cols]: Q4_0 uint8 0..15, value (code - 8) * scale; Q8_0 int8
  at::Tensor scale;  // fp16 [rows, cols / 32]
};

// The bytes of ggml's block_q4_0 (scale, then 16 bytes, each element i in the low half beside
// i + 16 in the high half) or block_q8_0 (scale, then 32 codes): uint8 [rows, bytes of a row]. The
// device is that of the codes. Throws c10::Error for other types, dtypes and shapes, and for Q4_0
// codes above 15 (on meta tensors, which have no values, shapes only).
at::Tensor pack_gguf_blocks(GgmlType type, const GgufBlocks& blocks);

// The inverse, bit for bit.
GgufBlocks unpack_gguf_blocks(GgmlType type, const at::Tensor& bytes);

}  // namespace narrowgauge::exports
