#include "export/gguf_blocks.h"

#include <ATen/ops/cat.h>

namespace narrowgauge::exports {
namespace {

constexpr int64_t kBlock = 32;
constexpr int64_t kScaleBytes = 2;

void check_type(GgmlType type) {
  TORCH_CHECK(type == GgmlType::kQ4_0 || type == GgmlType::kQ8_0,
              "expected Q4_0 or Q8_0 blocks, got ", ggml_type_name(type));
}

void check_blocks(GgmlType type, const GgufBlocks& blocks) {
  const at::ScalarType dtype = type == GgmlType::kQ4_0 ? at::kByte : at::kChar;
  TORCH_CHECK(blocks.codes.dim() == 2 && blocks.codes.scalar_type() == dtype &&
                  blocks.codes.size(1) % kBlock == 0,
              "expected ", dtype, " codes [rows, a multiple of 32] for ", ggml_type_name(type),
              ", got ", blocks.codes.scalar_type(), " ", blocks.codes.sizes());
  const int64_t rows = blocks.codes.size(0);
  TORCH_CHECK(blocks.scale.scalar_type() == at::kHalf &&
                  blocks.scale.sizes() == at::IntArrayRef({rows, blocks.codes.size(1) / kBlock}),
              "expected fp16 scales [rows, cols / 32] for codes ", blocks.codes.sizes(), ", got ",
              blocks.scale.scalar_type(), " ", blocks.scale.sizes());
}

}  // namespace

at::Tensor pack_gguf_blocks(GgmlType type, const GgufBlocks& blocks) {
  check_type(type);
  check_blocks(type, blocks);
  const int64_t rows = blocks.codes.size(0);
  const int64_t row_blocks = blocks.codes.size(1) / kBlock;
  const at::Tensor codes = blocks.codes.contiguous().view({rows, row_blocks, kBlock});
  at::Tensor bytes;
  if (type == GgmlType::kQ4_0) {
    TORCH_CHECK(codes.is_meta() || codes.numel() == 0 || codes.max().item<uint8_t>() < 16,
                "expected Q4_0 codes of 0 to 15");
    bytes =
        codes.narrow(2, 0, kBlock / 2).bitwise_or(codes.narrow(2, kBlock / 2, kBlock / 2).mul(16));
  } else {
    bytes = codes.view(at::kByte);
  }
  const at::Tensor scale =
      blocks.scale.contiguous().view(at::kByte).view({rows, row_blocks, kScaleBytes});
  return at::cat({scale, bytes}, 2).view({rows, row_blocks * ggml_block(type).bytes});
}

GgufBlocks unpack_gguf_blocks(GgmlType type, const at::Tensor& bytes) {
  check_type(type);
  const int64_t block_bytes = ggml_block(type).bytes;
  TORCH_CHECK(
      bytes.dim() == 2 && bytes.scalar_type() == at::kByte && bytes.size(1) % block_bytes == 0,
      "expected uint8 [rows, a multiple of ", block_bytes, "] for ", ggml_type_name(type), ", got ",
      bytes.scalar_type(), " ", bytes.sizes());
  const int64_t rows = bytes.size(0);
  const int64_t row_blocks = bytes.size(1) / block_bytes;
  const at::Tensor blocks = bytes.contiguous().view({rows, row_blocks, block_bytes});
  const at::Tensor packed = blocks.narrow(2, kScaleBytes, block_bytes - kScaleBytes);
  GgufBlocks result;
  result.scale =
      blocks.narrow(2, 0, kScaleBytes).contiguous().view(at::kHalf).view({rows, row_blocks});
  const at::Tensor codes = type == GgmlType::kQ4_0
                               ? at::cat({packed.bitwise_and(15), packed.bitwise_right_shift(4)}, 2)
                               : packed.contiguous().view(at::kChar);
  result.codes = codes.reshape({rows, row_blocks * kBlock});
  return result;
}

}  // namespace narrowgauge::exports
