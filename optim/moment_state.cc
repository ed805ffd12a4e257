#include "optim/moment_state.h"

#include <ATen/ops/zeros.h>

#include "optim/kernels/low_bit_adam.h"

namespace narrowgauge::optim {
namespace {

constexpr int64_t kSmallestQuantized = 4096;
constexpr int64_t kCacheLine = 64;

bool is_whole(StateFormat format) {
  return format == StateFormat::kFloat32 || format == StateFormat::kBFloat16;
}

int64_t bytes_of(StateFormat format, bool is_packed, int64_t count) {
  switch (format) {
    case StateFormat::kFloat32:
      return 4 * count;
    case StateFormat::kBFloat16:
      return 2 * count;
    default:
      return is_packed ? count / 2 : count;
  }
}

at::ScalarType dtype_of(StateFormat format) {
  switch (format) {
    case StateFormat::kFloat32:
      return at::kFloat;
    case StateFormat::kBFloat16:
      return at::kBFloat16;
    case StateFormat::kFp8:
      return at::kFloat8_e4m3fn;
    default:
      return at::kByte;
  }
}

}  // namespace

StateFormat format_for(StateFormat format, int64_t global_elements) {
  const bool fits =
      global_elements >= kSmallestQuantized && global_elements % block_size(format) == 0;
  return is_whole(format) || fits ? format : StateFormat::kFloat32;
}

int64_t block_size(StateFormat format) { return format == StateFormat::k4bit ? 128 : 256; }

MomentState::MomentState(StateFormat format, const kernels::CodebookTable& table,
                         const BlockLayout& layout, const ParameterShard& shard,
                         const at::Tensor& param)
    : format_(format), table_(table), layout_(layout), shard_(shard) {
  std::vector<int64_t> sizes = param.sizes().vec();
  if (format == StateFormat::k4bit) {
    int64_t row = 1;
    for (size_t i = 1; i < shard_.global_sizes.size(); ++i) {
      row *= shard_.global_sizes[i];
    }
    // Sharding cuts between rows: with an odd row it would cut a byte, so there a code has one.
    is_packed_ = row % 2 == 0;
    const int64_t row_bytes = is_packed_ ? row / 2 : row;
    sizes = {sizes[0], row_bytes};
    shard_.global_sizes = {shard_.global_sizes[0], row_bytes};
  }
  const at::TensorOptions options = param.options().requires_grad(false);
  values_ = at::zeros(sizes, options.dtype(dtype_of(format)));
  data_ = values_.mutable_data_ptr();
  if (!is_whole(format)) {
    scale_ = at::zeros({layout.num_blocks()}, options.dtype(at::kFloat));
    scales_ = scale_.mutable_data_ptr<float>();
  }
}

float* MomentState::read(int64_t block, float* scratch) const {
  const int64_t begin = layout_.begin(block);
  const int64_t count = layout_.begin(block + 1) - begin;
  switch (format_) {
    case StateFormat::kFloat32:
      return static_cast<float*>(data_) + begin;
    case StateFormat::kBFloat16:
      kernels::widen(scratch, static_cast<const uint16_t*>(data_) + begin, count);
      return scratch;
    default:
      break;
  }
  const auto* codes = static_cast<const uint8_t*>(data_) + bytes_of(format_, is_packed_, begin);
  (is_packed_ ? kernels::decode_packed : kernels::decode)(scratch, codes, count, scales_[block],
                                                          table_);
  return scratch;
}

void MomentState::write(int64_t block, const float* values, uint32_t amax_bits) const {
  const int64_t begin = layout_.begin(block);
  const int64_t count = layout_.begin(block + 1) - begin;
  switch (format_) {
    case StateFormat::kFloat32:
      return;  // `values` is where they lie
    case StateFormat::kBFloat16:
      kernels::narrow(static_cast<uint16_t*>(data_) + begin, values, count);
      return;
    default:
      break;
  }
  auto* codes = static_cast<uint8_t*>(data_) + bytes_of(format_, is_packed_, begin);
  scales_[block] = kernels::block_scale(amax_bits, table_);
  (is_packed_ ? kernels::encode_packed : kernels::encode)(codes, values, count, scales_[block],
                                                          table_);
}

void MomentState::prefetch(int64_t block) const {
  const int64_t begin = bytes_of(format_, is_packed_, layout_.begin(block));
  const int64_t end = bytes_of(format_, is_packed_, layout_.begin(block + 1));
  for (int64_t at = begin; at < end; at += kCacheLine) {
    __builtin_prefetch(static_cast<const char*>(data_) + at, /*write=*/1);
  }
}

kernels::MomentLayout MomentState::layout() const {
  return format_ == StateFormat::kFloat32    ? kernels::MomentLayout::kFloat32
         : format_ == StateFormat::kBFloat16 ? kernels::MomentLayout::kBFloat16
         : is_packed_                        ? kernels::MomentLayout::kPackedCodes
                                             : kernels::MomentLayout::kCodes;
}

void MomentState::append_to(std::vector<StateTensor>& state, const std::string& name) const {
  if (is_whole(format_)) {
    state.push_back({name, values_, shard_.global_sizes, shard_.row_begin});
    return;
  }
  state.push_back({name + ".codes", values_, shard_.global_sizes, shard_.row_begin});
  state.push_back({name + ".scale",
                   scale_,
                   {layout_.global_elements / layout_.block_size},
                   layout_.first_block(),
                   layout_.shares_first() ? 1 : 0});
}

}  // namespace narrowgauge::optim
