#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "optim/kernels/low_bit_adam_cuda.h"
#include "vectorize/philox.h"

// A warp takes a block. Lane l holds the elements 64 k + 2 l and 64 k + 2 l + 1, so that reads are
// coalesced at any alignment and the two codes of a byte are one lane's. Built with -fmad=false:
// every operation is rounded on its own, as on the CPU.

namespace narrowgauge::optim::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
// As many as fit into the 4 KiB of a kernel's arguments.
constexpr int kMaxTensors = 32;
constexpr unsigned kAllLanes = 0xffffffffU;
constexpr uint32_t kSmallestScaleBits = 0x2b8cbcccU;  // of 1e-12

struct Launch {
  LowBitAdamTensor tensors[kMaxTensors];
  int first_block[kMaxTensors + 1];  // of the grid; the last entry is the size of the grid
  int num_tensors;
  LowBitAdamStep step;
};
static_assert(sizeof(Launch) <= 4096);

__device__ float lerp(float start, float end, float weight) {
  const float coefficient = weight >= 0.5F ? weight - 1.0F : weight;
  return coefficient * (end - start) + (weight >= 0.5F ? end : start);
}

__device__ float read(const void* data, bool is_bf16, int64_t at) {
  return is_bf16 ? cuda::to_float(static_cast<const uint16_t*>(data)[at])
                 : static_cast<const float*>(data)[at];
}

__device__ uint16_t stochastic(float x, int64_t element, uint64_t step, uint64_t key) {
  const vectorize::PhiloxWords words =
      vectorize::philox(static_cast<uint64_t>(element) / 8, step, key);
  const uint32_t word = words.word[element % 8 / 2];
  const uint32_t random = element % 2 == 0 ? word & 0xffffU : word >> 16;
  const uint32_t bits = __float_as_uint(x);
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
  return static_cast<uint16_t>(is_nan ? bits >> 16 | 0x40U : (bits + random) >> 16);
}

__device__ float decoded(const void* data, MomentLayout layout, int64_t at, float scale,
                         const CodebookTable& table) {
  if (layout == MomentLayout::kFloat32 || layout == MomentLayout::kBFloat16) {
    return read(data, layout == MomentLayout::kBFloat16, at);
  }
  const auto* codes = static_cast<const uint8_t*>(data);
  const uint32_t code = layout == MomentLayout::kCodes
                            ? codes[at]
                            : (at % 2 == 0 ? codes[at / 2] >> 4 : codes[at / 2] & 15);
  return __ldg(table.values + code) * scale;
}

__device__ uint32_t encoded(float x, float scale, const CodebookTable& table) {
  const auto bits = __float_as_int(x / scale);
  const int cell = min(max((bits >> 16) & 0x7fff, table.first_cell), table.last_cell);
  const int negative = bits < 0 ? table.last_cell - table.first_cell + 1 : 0;
  const uint32_t entry = __ldg(table.cells + (cell - table.first_cell + negative));
  const auto low = static_cast<uint32_t>(bits) & 0xffffU;
  return (low >= (entry >> 16) ? entry >> 8 : entry) & 0xffU;
}

__device__ float scale_of(uint32_t amax_bits, const CodebookTable& table) {
  return __uint_as_float(max(amax_bits, kSmallestScaleBits)) / table.scale_divisor;
}

// values: those of this lane; [begin, end): the block.
template <int kPerLane>
__device__ void write_moment(void* data, float* scales, MomentLayout layout, int64_t block,
                             int64_t begin, int64_t end, int lane, const float (&values)[kPerLane],
                             uint32_t amax_bits, const CodebookTable& table) {
  const bool has_codes = layout == MomentLayout::kCodes || layout == MomentLayout::kPackedCodes;
  const float scale = has_codes ? scale_of(amax_bits, table) : 1.0F;
  if (has_codes && lane == 0) {
    scales[block] = scale;
  }
#pragma unroll
  for (int k = 0; k < kPerLane; k += 2) {
    const int64_t at = begin + 32 * k + 2 * lane;
    if (layout == MomentLayout::kPackedCodes) {
      if (at < end) {  // blocks of packed codes begin and end at even elements
        static_cast<uint8_t*>(data)[at / 2] = static_cast<uint8_t>(
            encoded(values[k], scale, table) << 4 | encoded(values[k + 1], scale, table));
      }
      continue;
    }
    for (int j = 0; j < 2; ++j) {
      if (at + j >= end) {
        continue;
      }
      if (layout == MomentLayout::kFloat32) {
        static_cast<float*>(data)[at + j] = values[k + j];
      } else if (layout == MomentLayout::kBFloat16) {
        static_cast<uint16_t*>(data)[at + j] = cuda::from_float<uint16_t>(values[k + j]);
      } else {
        static_cast<uint8_t*>(data)[at + j] =
            static_cast<uint8_t>(encoded(values[k + j], scale, table));
      }
    }
  }
}

template <int kPerLane, bool kOnlyMaxima>
__device__ void update_block(const LowBitAdamTensor& t, const LowBitAdamStep& step, int64_t block,
                             int64_t num_blocks, int lane) {
  constexpr int64_t kBlockSize = kPerLane * cuda::kWarpSize;
  const int32_t slot = block == 0 && t.first_slot >= 0 ? t.first_slot
                       : block + 1 == num_blocks       ? t.last_slot
                                                       : -1;
  if (kOnlyMaxima && slot < 0) {
    return;
  }
  const LowBitAdamCoefficients& c = step.coefficients;
  const int64_t first = (t.first_element / kBlockSize + block) * kBlockSize - t.first_element;
  const int64_t begin = max(first, int64_t{0});
  const int64_t end = min(first + kBlockSize, t.num_elements);
  const float scale_avg = t.exp_avg_scale != nullptr ? t.exp_avg_scale[block] : 1.0F;
  const float scale_sq = t.exp_avg_sq_scale != nullptr ? t.exp_avg_sq_scale[block] : 1.0F;
  float p[kPerLane];
  float m[kPerLane];
  float v[kPerLane];
  uint32_t max_avg = 0;
  uint32_t max_sq = 0;
#pragma unroll
  for (int k = 0; k < kPerLane; ++k) {
    const int64_t at = begin + 32 * (k & ~1) + 2 * lane + (k & 1);
    if (at < end) {
      p[k] = read(t.param, t.is_param_bf16, at);
      const float scaled = read(t.grad, t.is_grad_bf16, at) * c.gradient_scale;
      const float g = t.l2_decay != 0.0F ? scaled + t.l2_decay * p[k] : scaled;
      m[k] =
          lerp(decoded(t.exp_avg, t.layout, at, scale_avg, step.exp_avg_table), g, c.grad_weight);
      v[k] = lerp(decoded(t.exp_avg_sq, t.layout, at, scale_sq, step.exp_avg_sq_table), g * g,
                  c.grad_sq_weight);
      max_avg = max(max_avg, __float_as_uint(m[k]) & 0x7fffffffU);
      max_sq = max(max_sq, __float_as_uint(v[k]) & 0x7fffffffU);
    } else {
      p[k] = m[k] = v[k] = 0.0F;
    }
  }
  max_avg = __reduce_max_sync(kAllLanes, max_avg);
  max_sq = __reduce_max_sync(kAllLanes, max_sq);
  if (kOnlyMaxima) {
    if (lane == 0) {
      step.maxima[2 * slot] = static_cast<int32_t>(max_avg);
      step.maxima[2 * slot + 1] = static_cast<int32_t>(max_sq);
    }
    return;
  }
  if (slot >= 0) {
    max_avg = static_cast<uint32_t>(step.maxima[2 * slot]);
    max_sq = static_cast<uint32_t>(step.maxima[2 * slot + 1]);
  }
#pragma unroll
  for (int k = 0; k < kPerLane; ++k) {
    const int64_t at = begin + 32 * (k & ~1) + 2 * lane + (k & 1);
    if (at < end) {
      const float decayed = p[k] - t.decoupled_decay * p[k];
      const float denominator = __fsqrt_rn(v[k]) / c.correction_sqrt + c.eps;
      const float updated = decayed - t.lr * (m[k] / c.correction1) / denominator;
      if (!t.is_param_bf16) {
        static_cast<float*>(t.param)[at] = updated;
      } else {
        static_cast<uint16_t*>(t.param)[at] =
            step.stochastic_round
                ? stochastic(updated, t.first_element + at, step.step, t.rounding_key)
                : cuda::from_float<uint16_t>(updated);
      }
    }
  }
  write_moment<kPerLane>(t.exp_avg, t.exp_avg_scale, t.layout, block, begin, end, lane, m, max_avg,
                         step.exp_avg_table);
  write_moment<kPerLane>(t.exp_avg_sq, t.exp_avg_sq_scale, t.layout, block, begin, end, lane, v,
                         max_sq, step.exp_avg_sq_table);
}

__host__ __device__ int64_t num_blocks_of(const LowBitAdamTensor& t, int64_t block_size) {
  const int64_t end_block = (t.first_element + t.num_elements + block_size - 1) / block_size;
  return t.num_elements == 0 ? 0 : end_block - t.first_element / block_size;
}

template <int kPerLane, bool kOnlyMaxima>
__global__ void __launch_bounds__(kThreads)
    low_bit_adam_kernel(const __grid_constant__ Launch launch) {
  int index = 0;  // the last tensor that begins at or before this block of the grid
  for (int step = kMaxTensors / 2; step > 0; step /= 2) {
    if (index + step < launch.num_tensors &&
        launch.first_block[index + step] <= static_cast<int>(blockIdx.x)) {
      index += step;
    }
  }
  const LowBitAdamTensor& t = launch.tensors[index];
  const int64_t num_blocks = num_blocks_of(t, kPerLane * cuda::kWarpSize);
  const int64_t block = int64_t{static_cast<int>(blockIdx.x) - launch.first_block[index]} * kWarps +
                        threadIdx.x / cuda::kWarpSize;
  if (block < num_blocks) {
    update_block<kPerLane, kOnlyMaxima>(t, launch.step, block, num_blocks,
                                        threadIdx.x % cuda::kWarpSize);
  }
}

template <int kPerLane, bool kOnlyMaxima>
void run(std::span<const LowBitAdamTensor> tensors, const LowBitAdamStep& step,
         cuda::StreamHandle stream) {
  Launch launch{};
  launch.step = step;
  int64_t grid = 0;
  const auto flush = [&] {
    if (grid > 0) {
      launch.first_block[launch.num_tensors] = static_cast<int>(grid);
      low_bit_adam_kernel<kPerLane, kOnlyMaxima>
          <<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(launch);
      cuda::check_launch("low_bit_adam");
    }
    launch.num_tensors = 0;
    grid = 0;
  };
  for (const LowBitAdamTensor& tensor : tensors) {
    const bool is_needed = !kOnlyMaxima || tensor.first_slot >= 0 || tensor.last_slot >= 0;
    if (tensor.num_elements == 0 || !is_needed) {
      continue;
    }
    if (launch.num_tensors == kMaxTensors) {
      flush();
    }
    launch.tensors[launch.num_tensors] = tensor;
    launch.first_block[launch.num_tensors] = static_cast<int>(grid);
    ++launch.num_tensors;
    grid += cuda::ceil_div(num_blocks_of(tensor, kPerLane * cuda::kWarpSize), int64_t{kWarps});
  }
  flush();
}

template <bool kOnlyMaxima>
void run_blocks_of(int64_t block_size, std::span<const LowBitAdamTensor> tensors,
                   const LowBitAdamStep& step, cuda::StreamHandle stream) {
  if (block_size == 256) {
    run<8, kOnlyMaxima>(tensors, step, stream);
  } else {
    run<4, kOnlyMaxima>(tensors, step, stream);
  }
}

}  // namespace

void low_bit_adam_maxima(std::span<const LowBitAdamTensor> tensors, int64_t block_size,
                         const LowBitAdamStep& step, cuda::StreamHandle stream) {
  run_blocks_of<true>(block_size, tensors, step, stream);
}

void low_bit_adam(std::span<const LowBitAdamTensor> tensors, int64_t block_size,
                  const LowBitAdamStep& step, cuda::StreamHandle stream) {
  run_blocks_of<false>(block_size, tensors, step, stream);
}

}  // namespace narrowgauge::optim::kernels
