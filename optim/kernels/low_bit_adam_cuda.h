#pragma once

#include <cstdint>
#include <span>

#include "cuda/stream_handle.h"
#include "optim/kernels/codebook.h"
#include "optim/kernels/low_bit_adam.h"

namespace narrowgauge::optim::kernels {

enum class MomentLayout : uint8_t { kFloat32, kBFloat16, kCodes, kPackedCodes };

// One shard's update; all pointers are device memory. lr and the decays replace those of the common
// coefficients, since they depend on the parameter's group.
struct LowBitAdamTensor {
  void* param = nullptr;  // fp32 or bf16
  const void* grad = nullptr;
  void* exp_avg = nullptr;
  void* exp_avg_sq = nullptr;
  float* exp_avg_scale = nullptr;  // one a block; null for layouts without
  float* exp_avg_sq_scale = nullptr;
  int64_t first_element = 0;  // of the shard in the whole parameter, whose blocks these are
  int64_t num_elements = 0;
  uint64_t rounding_key = 0;
  float lr = 0.0F;
  float decoupled_decay = 0.0F;
  float l2_decay = 0.0F;
  // Where the largest magnitudes of the first, of the last block are exchanged with other shards;
  // -1 if they are this shard's alone.
  int32_t first_slot = -1;
  int32_t last_slot = -1;
  MomentLayout layout = MomentLayout::kFloat32;
  bool is_param_bf16 = false;
  bool is_grad_bf16 = false;
};

// What is common to all tensors of a step. Tables and maxima are device memory, too.
struct LowBitAdamStep {
  LowBitAdamCoefficients coefficients;
  CodebookTable exp_avg_table;
  CodebookTable exp_avg_sq_table;
  int32_t* maxima = nullptr;  // [slots, 2], bits; see BlockExchange
  uint64_t step = 0;
  bool stochastic_round = false;
};

// The maxima of the blocks that have a slot; nothing else is written.
void low_bit_adam_maxima(std::span<const LowBitAdamTensor> tensors, int64_t block_size,
                         const LowBitAdamStep& step, cuda::StreamHandle stream);

// The update that low_bit_adam.h's stages make, of blocks of 128 or 256 elements, in few launches;
// the same bits.
void low_bit_adam(std::span<const LowBitAdamTensor> tensors, int64_t block_size,
                  const LowBitAdamStep& step, cuda::StreamHandle stream);

}  // namespace narrowgauge::optim::kernels
