#include "float8/scaled_mm_cuda.h"

#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/constant_pad_nd.h>

#include <optional>

#include "float8/cast_cuda.h"
#include "float8/kernels/cast_cuda.h"

namespace narrowgauge::float8 {
namespace {

constexpr int64_t kSizeMultiple = 16;  // of k and n
constexpr int64_t kBlock = 128;

int64_t missing(int64_t size) { return (kSizeMultiple - size % kSizeMultiple) % kSizeMultiple; }

bool is_plain(const Float8TrainingTensor& x) {
  return x.granularity == ScalingGranularity::kTensorwise ||
         x.granularity == ScalingGranularity::kAxiswise;
}

bool is_blockwise(const Float8TrainingTensor& x) {
  return x.granularity == ScalingGranularity::kBlockwise1x128 ||
         x.granularity == ScalingGranularity::kBlockwise128x128;
}

// torch refuses 128x128 blocks unless four of them follow each other along the contracted dimension
// (one block, with its scales padded to four, on an H200 with torch 2.11).
int64_t contracted_multiple(const Float8TrainingTensor& a, const Float8TrainingTensor& b) {
  const bool squares = a.granularity == ScalingGranularity::kBlockwise128x128 ||
                       b.granularity == ScalingGranularity::kBlockwise128x128;
  return squares ? 4 * kBlock : kBlock;
}

// cuBLASLt has 1x128 with each of 1x128 and 128x128, in whole blocks.
bool has_blockwise_product(const Float8TrainingTensor& a, const Float8TrainingTensor& b) {
  return is_blockwise(a) && is_blockwise(b) &&
         (a.granularity == ScalingGranularity::kBlockwise1x128 ||
          b.granularity == ScalingGranularity::kBlockwise1x128) &&
         a.cols() % contracted_multiple(a, b) == 0 && a.rows() % kSizeMultiple == 0 &&
         b.rows() % kSizeMultiple == 0;
}

// Scales of blocks in the layout that torch's product asks for: 1x128 column-major; of 128x128 each
// row begins at a multiple of four.
at::Tensor block_scales(const Float8TrainingTensor& x) {
  const at::Tensor& scales = x.inverse_scale;
  if (x.granularity == ScalingGranularity::kBlockwise1x128) {
    return scales.t().contiguous().t();
  }
  const int64_t missing_columns = (4 - scales.size(1) % 4) % 4;
  // Row-major first: those of a transposed matrix are a view.
  return at::constant_pad_nd(scales.contiguous(), {0, missing_columns})
      .narrow(1, 0, scales.size(1));
}

// [rows, k] row-major with zero codes appended: a zero adds nothing to a sum.
at::Tensor padded(const at::Tensor& codes, int64_t more_rows, int64_t more_columns) {
  const at::Tensor packed = row_major_codes_cuda(codes);
  if (more_rows == 0 && more_columns == 0) {
    return packed;
  }
  return at::constant_pad_nd(packed.view(at::kByte), {0, more_columns, 0, more_rows})
      .view(codes.scalar_type());
}

// One scale a row, [rows], where either operand has such; rows beyond them get 1.
at::Tensor row_scales(const Float8TrainingTensor& x, int64_t more_rows) {
  const at::Tensor flat = x.inverse_scale.expand({x.rows(), 1}).flatten();
  return more_rows == 0 ? flat.contiguous() : at::constant_pad_nd(flat, {0, more_rows}, 1.0);
}

}  // namespace

bool has_cuda_scaled_mm(const Float8TrainingTensor& a, const Float8TrainingTensor& b) {
  const bool tensorwise = a.granularity == ScalingGranularity::kTensorwise &&
                          b.granularity == ScalingGranularity::kTensorwise;
  const int num_e4m3 = (a.data.scalar_type() == at::kFloat8_e4m3fn ? 1 : 0) +
                       (b.data.scalar_type() == at::kFloat8_e4m3fn ? 1 : 0);
  return a.data.is_cuda() && b.data.is_cuda() && a.data.numel() > 0 && b.data.numel() > 0 &&
         ((is_plain(a) && is_plain(b)) || has_blockwise_product(a, b)) &&
         num_e4m3 >= (tensorwise ? 1 : 2) && kernels::has_float8_instructions();
}

bool fuses_bias(const Float8TrainingTensor& a, at::ScalarType out_dtype, const at::Tensor& bias) {
  return is_plain(a) && bias.scalar_type() == out_dtype &&
         (out_dtype == at::kBFloat16 || out_dtype == at::kHalf);
}

at::Tensor scaled_mm_cuda(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                          at::ScalarType out_dtype, const at::Tensor& bias, bool use_fast_accum) {
  if (is_blockwise(a)) {
    return at::_scaled_mm(row_major_codes_cuda(a.data), row_major_codes_cuda(b.data).t(),
                          block_scales(a), block_scales(b).t(), /*bias=*/{}, /*scale_result=*/{},
                          out_dtype,
                          /*use_fast_accum=*/false);  // cuBLASLt refuses it with scales per block
  }
  const int64_t more_k = missing(a.cols());
  const int64_t more_n = missing(b.rows());
  const at::Tensor a_codes = padded(a.data, 0, more_k);
  const at::Tensor b_codes = padded(b.data, more_n, more_k);
  const bool tensorwise = a.granularity == ScalingGranularity::kTensorwise &&
                          b.granularity == ScalingGranularity::kTensorwise;
  const at::Tensor a_scale = tensorwise ? a.inverse_scale : row_scales(a, 0).unsqueeze(1);
  const at::Tensor b_scale = tensorwise ? b.inverse_scale : row_scales(b, more_n).unsqueeze(0);
  std::optional<at::Tensor> more_bias;
  if (bias.defined()) {
    more_bias = more_n == 0 ? bias.contiguous() : at::constant_pad_nd(bias, {0, more_n});
  }
  const at::Tensor y = at::_scaled_mm(a_codes, b_codes.t(), a_scale, b_scale, more_bias,
                                      /*scale_result=*/{}, out_dtype, use_fast_accum);
  return more_n == 0 ? y : y.narrow(1, 0, b.rows()).contiguous();
}

}  // namespace narrowgauge::float8
