#include "quantization/packed_weight.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ldexp.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace narrowgauge::quantization {
namespace {

using kernels::CodeFormat;
using kernels::kBlock;

constexpr int64_t kGrainBytes = 1 << 16;  // of weights, that a thread must at least get
constexpr int64_t kTileElements = 1 << 20;

int64_t blocks_of(int64_t cols) { return (cols + kBlock - 1) / kBlock; }

CodeFormat format_of(const QuantizationSpec& spec) {
  switch (spec.grid) {
    case Grid::kAffine:
      return spec.bits <= 4 ? CodeFormat::kInt4 : CodeFormat::kInt8;
    case Grid::kGgufQ4_0:
      return CodeFormat::kInt4;
    case Grid::kGgufQ8_0:
      return CodeFormat::kInt8;
    case Grid::kFloat8:
    case Grid::kMxfp8:
      return CodeFormat::kE4m3;
    case Grid::kMxfp4:
    case Grid::kNvfp4:
      return CodeFormat::kE2m1;
  }
  TORCH_CHECK(false, "expected a grid, got ", static_cast<int>(spec.grid));
}

// What an affine code is more than the value it is packed as.
double base_of(const QuantizationSpec& spec) {
  return spec.is_signed ? 0 : (spec.bits <= 4 ? 8 : 128);
}

// Codes as the kernel's bytes, one each: 0..15, or those of int8 and fp8.
at::Tensor code_bytes(const QuantizedTensor& q) {
  if (q.spec.grid != Grid::kAffine) {
    return q.codes.view(at::kByte);
  }
  if (q.spec.bits <= 4) {
    return q.spec.is_signed ? q.codes.add(8).to(at::kByte) : q.codes;
  }
  return q.spec.is_signed ? q.codes.view(at::kByte) : q.codes.bitwise_xor(128);
}

// [rows, groups] fp32, of kernels/packed_gemv.h.
at::Tensor scale_of(const QuantizedTensor& q) {
  at::Tensor scale;
  switch (q.spec.grid) {
    case Grid::kMxfp8:
    case Grid::kMxfp4: {
      const at::Tensor exponent = q.scale.to(at::kFloat).sub(127);
      scale = at::where(q.scale.eq(255), std::numeric_limits<float>::quiet_NaN(),
                        at::ldexp(at::zeros_like(exponent).add(1), exponent));
      break;
    }
    case Grid::kNvfp4:
      scale = q.scale.to(at::kFloat).mul(q.outer_scale->to(at::kFloat));
      break;
    default:
      scale = q.scale.to(at::kFloat);
  }
  scale = scale.expand({q.codes.size(0), scale.size(1)}).contiguous();
  if (format_of(q.spec) == CodeFormat::kE4m3) {
    const int64_t groups = scale.size(1);
    const at::Tensor has_nan = q.codes.view(at::kByte)
                                   .bitwise_and(0x7f)
                                   .eq(0x7f)
                                   .reshape({q.codes.size(0), groups, -1})
                                   .any(2);
    scale = scale.masked_fill(has_nan, std::numeric_limits<float>::quiet_NaN());
  }
  return scale;
}

at::Tensor offset_of(const QuantizedTensor& q, const at::Tensor& scale) {
  if (q.spec.grid != Grid::kAffine) {
    return at::zeros_like(scale);
  }
  const double base = base_of(q.spec);
  switch (q.spec.zero_point_domain) {
    case ZeroPointDomain::kInt:
      return scale.mul(q.zero_point->to(at::kFloat).neg().add(base));
    case ZeroPointDomain::kFloat: {
      const double middle = static_cast<double>(1LL << (q.spec.bits - 1));
      return scale.mul(base - middle).add(q.zero_point->to(at::kFloat));
    }
    case ZeroPointDomain::kNone:
      break;
  }
  return scale.mul(base);
}

// [rows, padded cols] bytes to blocks of 16 bytes: code j and code j + 16 of 32.
at::Tensor pack_nibbles(const at::Tensor& bytes) {
  const at::Tensor blocks = bytes.view({bytes.size(0), -1, 2, kBlock / 2});
  const at::Tensor high = blocks.select(2, 1).bitwise_left_shift(4);
  return blocks.select(2, 0).bitwise_or(high).reshape({bytes.size(0), -1}).contiguous();
}

int64_t packed_group_size(const QuantizedTensor& q) {
  return q.scale.size(1) <= 1 ? blocks_of(q.codes.size(1)) * kBlock
                              : q.codes.size(1) / q.scale.size(1);
}

bool is_packable(std::span<const QuantizedTensor> parts) {
  const QuantizedTensor& first = parts.front();
  const int64_t group = first.codes.dim() == 2 ? packed_group_size(first) : 0;
  return (group == kBlock / 2 || (group > 0 && group % kBlock == 0)) &&
         std::ranges::all_of(parts, [&](const QuantizedTensor& part) {
           return part.codes.dim() == 2 && part.codes.is_cpu() &&
                  format_of(part.spec) == format_of(first.spec) &&
                  part.codes.size(1) == first.codes.size(1) && packed_group_size(part) == group;
         });
}

kernels::PackedRows rows_of(const PackedWeight& w) {
  return {w.format,
          w.codes.const_data_ptr<uint8_t>(),
          w.scale.const_data_ptr<float>(),
          w.offset.defined() ? w.offset.const_data_ptr<float>() : nullptr,
          blocks_of(w.cols),
          w.scale.size(1),
          w.group_size};
}

// x: [tokens, cols].
at::Tensor gemv(const at::Tensor& x, const PackedWeight& w) {
  const kernels::PackedRows rows = rows_of(w);
  const int64_t padded = rows.num_blocks * kBlock;
  const at::Tensor wide = at::constant_pad_nd(x.to(at::kFloat), {0, padded - w.cols}).contiguous();
  at::Tensor sums;
  if (w.offset.defined()) {
    const int64_t grouped = w.scale.size(1) * w.group_size;
    sums = at::constant_pad_nd(wide, {0, grouped - padded})
               .view({x.size(0), w.scale.size(1), w.group_size})
               .sum(-1)
               .contiguous();
  }
  at::Tensor y = at::empty({x.size(0), w.rows}, wide.options());
  float* out = y.mutable_data_ptr<float>();
  const int64_t row_bytes = rows.num_blocks * kernels::block_bytes(w.format);
  const int64_t grain = std::max<int64_t>(4, kGrainBytes / std::max<int64_t>(1, row_bytes));
  at::parallel_for(0, w.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = 0; token < x.size(0); token += kernels::kMaxGemvTokens) {
      const kernels::GemvInput input{
          wide.const_data_ptr<float>() + token * padded,
          sums.defined() ? sums.const_data_ptr<float>() + token * rows.num_groups : nullptr,
          std::min(kernels::kMaxGemvTokens, x.size(0) - token)};
      kernels::packed_gemv(rows, input, begin, end, out + token * w.rows, w.rows);
    }
  });
  return y;
}

void unpack_into(const PackedWeight& w, int64_t first_row, int64_t num_rows,
                 const at::Tensor& tile) {
  const kernels::PackedRows rows = rows_of(w);
  const int64_t padded = rows.num_blocks * kBlock;
  at::parallel_for(
      0, num_rows, std::max<int64_t>(1, kGrainBytes / padded), [&](int64_t begin, int64_t end) {
        const auto into = [&](auto* out) {
          kernels::unpack_rows(rows, first_row + begin, first_row + end, out + begin * padded);
        };
        if (tile.scalar_type() == at::kFloat) {
          into(tile.mutable_data_ptr<float>());
        } else {
          into(static_cast<uint16_t*>(tile.mutable_data_ptr()));
        }
      });
}

at::Tensor multiply_tiles(const at::Tensor& x, const PackedWeight& w) {
  const int64_t padded = blocks_of(w.cols) * kBlock;
  const int64_t tile_rows = std::clamp<int64_t>(kTileElements / padded, 1, w.rows);
  const at::Tensor tile = at::empty({tile_rows, padded}, x.options());
  at::Tensor y = at::empty({x.size(0), w.rows}, x.options());
  for (int64_t row = 0; row < w.rows; row += tile_rows) {
    const int64_t count = std::min(tile_rows, w.rows - row);
    unpack_into(w, row, count, tile);
    const at::Tensor weight = tile.narrow(0, 0, count).narrow(1, 0, w.cols);
    y.narrow(1, row, count).copy_(at::linear(x, weight));
  }
  return y;
}

}  // namespace

int64_t PackedWeight::size_bytes() const {
  return static_cast<int64_t>(codes.nbytes() + scale.nbytes() +
                              (offset.defined() ? offset.nbytes() : 0));
}

std::optional<PackedWeight> pack(std::span<const QuantizedTensor> parts) {
  if (parts.empty() || !is_packable(parts)) {
    return std::nullopt;
  }
  const int64_t cols = parts.front().codes.size(1);
  const int64_t padded = blocks_of(cols) * kBlock;
  const int64_t group_size = packed_group_size(parts.front());
  const int64_t num_groups = (padded + group_size - 1) / group_size;
  std::vector<at::Tensor> codes;
  std::vector<at::Tensor> scales;
  std::vector<at::Tensor> offsets;
  for (const QuantizedTensor& part : parts) {
    codes.push_back(at::constant_pad_nd(code_bytes(part), {0, padded - cols}));
    scales.push_back(scale_of(part));
    offsets.push_back(offset_of(part, scales.back()));
  }
  const auto stacked = [&](const std::vector<at::Tensor>& tensors) {
    const at::Tensor all = at::cat(tensors);
    return at::constant_pad_nd(all, {0, num_groups - all.size(1)}).contiguous();
  };
  PackedWeight w{format_of(parts.front().spec),
                 0,
                 cols,
                 group_size,
                 at::cat(codes).contiguous(),
                 stacked(scales),
                 stacked(offsets)};
  w.rows = w.codes.size(0);
  if (kernels::block_bytes(w.format) < kBlock) {
    w.codes = pack_nibbles(w.codes);
  }
  if (!w.offset.ne(0).any().item<bool>()) {
    w.offset = at::Tensor();
  }
  return w;
}

at::Tensor packed_linear(const at::Tensor& x, const PackedWeight& w, const at::Tensor& bias) {
  TORCH_CHECK(x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16),
              "expected fp32 or bf16 on the CPU, got ", x.dtype(), " on ", x.device());
  TORCH_CHECK(x.dim() > 0 && x.size(-1) == w.cols, "expected x of ", w.cols, " columns, got ",
              x.sizes());
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = w.rows;
  const at::Tensor flat = x.reshape({-1, w.cols});
  at::Tensor y = flat.size(0) <= kMostGemvTokens ? gemv(flat, w) : multiply_tiles(flat, w);
  if (bias.defined()) {
    y = y.add(bias);
  }
  return y.to(x.scalar_type()).view(sizes);
}

at::Tensor unpack(const PackedWeight& w, at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "expected fp32 or bf16, got ", dtype);
  const at::Tensor all = at::empty({w.rows, blocks_of(w.cols) * kBlock}, at::dtype(dtype));
  unpack_into(w, 0, w.rows, all);
  return all.narrow(1, 0, w.cols).contiguous();
}

}  // namespace narrowgauge::quantization
