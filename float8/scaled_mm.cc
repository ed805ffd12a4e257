#include "float8/scaled_mm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <memory>

#include "float8/kernels/scaled_gemm.h"
#include "float8/row_strips.h"
#include "float8/scaled_mm_cuda.h"

namespace narrowgauge::float8 {
namespace {

// Elements of the contracted dimension that share a scale, 0 where all do.
int64_t contracted_block(ScalingGranularity granularity) {
  switch (granularity) {
    case ScalingGranularity::kBlockwise1x128:
    case ScalingGranularity::kBlockwise128x128:
      return 128;
    case ScalingGranularity::kBlockwise1x32:
      return 32;
    default:
      return 0;
  }
}

void check_operand(const Float8TrainingTensor& x) {
  const bool same_for_both_dims = x.granularity == ScalingGranularity::kTensorwise ||
                                  x.granularity == ScalingGranularity::kBlockwise128x128;
  TORCH_CHECK(x.dim == 1 || same_for_both_dims,
              "expected an operand cast for the dimension that is contracted (1), got one for dim ",
              x.dim, "; cast it for dim 1, or transpose() a cast for dim 0");
}

void check_arguments(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                     const at::Tensor& bias) {
  TORCH_CHECK(a.cols() == b.cols(), "expected A [m, k] and B [n, k], got ", a.data.sizes(), " and ",
              b.data.sizes());
  TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == b.rows()),
              "expected a bias of shape [", b.rows(), "], got ", bias.sizes());
  check_operand(a);
  check_operand(b);
  TORCH_CHECK(contracted_block(a.granularity) == contracted_block(b.granularity),
              "expected operands with scales of equal blocks along the contracted dimension, got "
              "blocks of ",
              contracted_block(a.granularity), " and ", contracted_block(b.granularity),
              " (0: one scale); cast both with matching granularities");
}

at::Tensor emulated(const Float8TrainingTensor& a, const Float8TrainingTensor& b) {
  return at::mm(dequantize_reference(a, at::kFloat), dequantize_reference(b, at::kFloat).t());
}

// Whether scaled_gemm can read the codes as they lie.
bool has_unit_stride(const at::Tensor& x) { return x.stride(0) == 1 || x.stride(1) == 1; }

bool runs_kernel(const Float8TrainingTensor& a, const Float8TrainingTensor& b) {
  return a.data.is_cpu() && b.data.is_cpu() && a.data.numel() > 0 && b.data.numel() > 0 &&
         has_unit_stride(a.data) && has_unit_stride(b.data) && kernels::has_scaled_gemm();
}

kernels::Codes codes_of(const Float8TrainingTensor& x) {
  // Where both strides are 1 (a single row or column) either reading is right.
  return {static_cast<const uint8_t*>(x.data.const_data_ptr()), kernel_format(x.data.scalar_type()),
          x.data.stride(0), x.data.stride(1)};
}

// scale: x.inverse_scale in fp32, which must outlive the result.
kernels::InverseScales scales_of(const Float8TrainingTensor& x, const at::Tensor& scale) {
  const auto* data = scale.const_data_ptr<float>();
  if (scale.dim() == 0) {
    return {data, 0, 0, 0};
  }
  const int64_t row_shift = x.granularity == ScalingGranularity::kBlockwise128x128 ? 7 : 0;
  return {data, row_shift, scale.stride(0), scale.stride(1)};
}

// Rows of C go to threads where there are enough, panels of columns otherwise.
void multiply(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
              const kernels::GemmOutput& output) {
  const int64_t m = a.rows();
  const int64_t n = b.rows();
  const int64_t k = a.cols();
  const int64_t k_block = contracted_block(a.granularity);
  const at::Tensor a_scale = a.inverse_scale.to(at::kFloat);
  const at::Tensor b_scale = b.inverse_scale.to(at::kFloat);
  const kernels::Codes a_codes = codes_of(a);
  const kernels::Codes b_codes = codes_of(b);
  const int64_t num_panels = (n + kernels::kPanelCols - 1) / kernels::kPanelCols;
  const int64_t panel_size = kernels::packed_panel_size(k);
  // 16 MB of packed panels at a time: all of B but for the largest layers.
  const int64_t panels_at_once =
      std::min(num_panels, std::max<int64_t>(64, (8 << 20) / panel_size));
  const at::Tensor packed = at::empty({panels_at_once * panel_size}, at::kBFloat16);
  auto* packed_data = static_cast<uint16_t*>(packed.mutable_data_ptr());
  const int64_t num_tiles = (m + kernels::kTileRows - 1) / kernels::kTileRows;
  const bool over_rows = num_tiles >= 4 * at::get_num_threads();
  for (int64_t first = 0; first < num_panels; first += panels_at_once) {
    const int64_t last = std::min(first + panels_at_once, num_panels);
    uint16_t* origin = packed_data - first * panel_size;
    at::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      kernels::pack_panels(b_codes, n, k, begin, end, origin);
    });
    const auto run = [&](int64_t first_row, int64_t last_row, int64_t begin, int64_t end) {
      const auto scratch =
          std::make_unique_for_overwrite<float[]>(static_cast<size_t>(kernels::scratch_size()));
      kernels::scaled_gemm(a_codes, scales_of(a, a_scale), origin, scales_of(b, b_scale), n, k,
                           k_block, first_row, last_row, begin, end, output, scratch.get());
    };
    if (over_rows) {
      at::parallel_for(0, num_tiles, 1, [&](int64_t begin, int64_t end) {
        run(begin * kernels::kTileRows, std::min(end * kernels::kTileRows, m), first, last);
      });
    } else {
      at::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) { run(0, m, begin, end); });
    }
  }
}

kernels::OutputType output_type(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? kernels::OutputType::kBFloat16 : kernels::OutputType::kFloat;
}

at::Tensor multiply(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                    at::ScalarType out_dtype, const at::Tensor& bias) {
  const auto computed = out_dtype == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
  const at::Tensor out = at::empty({a.rows(), b.rows()}, a.data.options().dtype(computed));
  const at::Tensor wide_bias = bias.defined() ? bias.detach().to(at::kFloat).contiguous() : bias;
  multiply(a, b,
           {out.mutable_data_ptr(), out.stride(0), output_type(computed), false,
            bias.defined() ? wide_bias.const_data_ptr<float>() : nullptr});
  return out.to(out_dtype);
}

at::Tensor on_cuda(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                   at::ScalarType out_dtype, const at::Tensor& bias, bool use_fast_accum) {
  if (!bias.defined() || fuses_bias(a, out_dtype, bias)) {
    return scaled_mm_cuda(a, b, out_dtype, bias.defined() ? bias.detach() : bias, use_fast_accum);
  }
  const at::Tensor y = scaled_mm_cuda(a, b, at::kFloat, {}, use_fast_accum);
  return y.add_(bias.to(at::kFloat)).to(out_dtype);
}

}  // namespace

at::Tensor scaled_mm_reference(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                               at::ScalarType out_dtype, const at::Tensor& bias) {
  check_arguments(a, b, bias);
  const at::Tensor y = emulated(a, b);
  return (bias.defined() ? y.add(bias.to(at::kFloat)) : y).to(out_dtype);
}

at::Tensor scaled_mm(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                     at::ScalarType out_dtype, const at::Tensor& bias, bool use_fast_accum) {
  RECORD_FUNCTION("narrowgauge::float8::scaled_mm", c10::ArrayRef<const c10::IValue>());
  check_arguments(a, b, bias);
  if (has_cuda_scaled_mm(a, b)) {
    return on_cuda(a, b, out_dtype, bias, use_fast_accum);
  }
  return runs_kernel(a, b) ? multiply(a, b, out_dtype, bias)
                           : scaled_mm_reference(a, b, out_dtype, bias);
}

void scaled_mm_accumulate(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                          at::Tensor& out) {
  check_arguments(a, b, {});
  TORCH_CHECK(out.dim() == 2 && out.size(0) == a.rows() && out.size(1) == b.rows(),
              "expected out of sizes [", a.rows(), ", ", b.rows(), "], got ", out.sizes());
  const bool writable = out.scalar_type() == at::kFloat || out.scalar_type() == at::kBFloat16;
  if (has_cuda_scaled_mm(a, b)) {
    out.add_(scaled_mm_cuda(a, b, at::kFloat, {}, /*use_fast_accum=*/false));
  } else if (runs_kernel(a, b) && writable && out.is_contiguous()) {
    multiply(
        a, b,
        {out.mutable_data_ptr(), out.stride(0), output_type(out.scalar_type()), true, nullptr});
  } else {
    out.copy_(out.to(at::kFloat).add(emulated(a, b)));
  }
}

}  // namespace narrowgauge::float8
