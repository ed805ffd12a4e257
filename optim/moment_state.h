#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "optim/block_layout.h"
#include "optim/kernels/codebook.h"
#include "optim/kernels/low_bit_adam_cuda.h"
#include "optim/optimizer.h"

namespace narrowgauge::optim {

// How moments are kept: whole, or as codes of blocks with a scale each (torchao's formats).
enum class StateFormat {
  kFloat32,
  kBFloat16,
  k8bit,  // dynamic tree, blocks of 256
  k4bit,  // dynamic tree and 1/16 .. 1, blocks of 128, two codes a byte
  kFp8,   // float8_e4m3fn, blocks of 256
};

// What a parameter of so many elements gets: fp32 in place of a quantized format under 4,096
// elements or where the last block would be short. A property of the whole parameter, so that all
// ranks agree and so that sharding does not change it.
StateFormat format_for(StateFormat format, int64_t global_elements);

// Elements that share a scale; for kFloat32 and kBFloat16 those handled at a time.
int64_t block_size(StateFormat format);

// One moment of one shard, zeros at first. Blocks are handled separately, also by several threads.
class MomentState {
 public:
  // table: of the codebook, which outlives this; not used for kFloat32 and kBFloat16.
  MomentState(StateFormat format, const kernels::CodebookTable& table, const BlockLayout& layout,
              const ParameterShard& shard, const at::Tensor& param);

  // The block in fp32: in `scratch` [block_size], or where it lies.
  float* read(int64_t block, float* scratch) const;
  // Takes it back. amax_bits: of the largest magnitude of the whole block.
  void write(int64_t block, const float* values, uint32_t amax_bits) const;
  // Brings the block to the processor ahead of read.
  void prefetch(int64_t block) const;

  // The same for a kernel that handles blocks itself.
  void* data() const { return data_; }
  float* scales() const { return scales_; }  // null for whole formats
  kernels::MomentLayout layout() const;

  // Appends <name> (whole formats), or <name>.codes and <name>.scale.
  void append_to(std::vector<StateTensor>& state, const std::string& name) const;

 private:
  StateFormat format_;
  bool is_packed_ = false;
  kernels::CodebookTable table_;
  BlockLayout layout_;
  ParameterShard shard_;
  at::Tensor values_;  // or codes
  at::Tensor scale_;   // [blocks] fp32; undefined for whole formats
  // Where the tensors keep their data.
  void* data_ = nullptr;
  float* scales_ = nullptr;
};

}  // namespace narrowgauge::optim
