#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "optim/kernels/codebook.cuh"
#include "optim/kernels/low_bit_adam_cuda.h"
#include "optim/kernels/pairs.cuh"
#include "vectorize/philox.h"

// A warp takes a block. Lane l holds the elements 64 k + 2 l and 64 k + 2 l + 1, so that reads are
// coalesced and the two codes of a byte are one lane's. By count, instructions weigh more than
// memory (10 bytes an element of bf16 with 8-bit codes), so: the tables lie in shared memory, where
// 32 lanes that look up 32 places meet in three or four of a bank, and blocks of the grid stay to
// use them again; a lane draws the random words of eight elements at once and shares them;
// neighbours move in pairs. Built with -fmad=false: every operation is rounded on its own, as on
// the CPU.

namespace narrowgauge::optim::kernels {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksPerProcessor = 2;
constexpr int kWarps = kThreads / cuda::kWarpSize;
// As many as fit into the 4 KiB of a kernel's arguments.
constexpr int kMaxTensors = 32;
constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kWordsPerWarp = 4 * cuda::kWarpSize;

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

struct Tables {
  SharedTable exp_avg;
  SharedTable exp_avg_sq;
  uint32_t* words;  // [kWordsPerWarp], this warp's: random ones of a block's pairs of elements
};

// x rounded to bf16 by 16 random bits.
__device__ uint16_t stochastic(float x, uint32_t random) {
  const uint32_t bits = __float_as_uint(x);
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
  return static_cast<uint16_t>(is_nan ? bits >> 16 | 0x40U : (bits + random) >> 16);
}

__device__ uint32_t random_bits_of(int64_t element, uint64_t step, uint64_t key) {
  const vectorize::PhiloxWords words =
      vectorize::philox(static_cast<uint64_t>(element) / 8, step, key);
  const uint32_t word = words.word[element % 8 / 2];
  return element % 2 == 0 ? word & 0xffffU : word >> 16;
}

// The words of elements first to first + 255, one for each pair, where they begin a draw of eight.
__device__ void draw_words(uint32_t* words, int64_t first, uint64_t step, uint64_t key, int lane) {
  const vectorize::PhiloxWords drawn =
      vectorize::philox(static_cast<uint64_t>(first) / 8 + lane, step, key);
  __syncwarp();  // the last block's have been read
  *reinterpret_cast<uint4*>(words + 4 * lane) =
      make_uint4(drawn.word[0], drawn.word[1], drawn.word[2], drawn.word[3]);
  __syncwarp();
}

// A moment of the pair at `at`. Without codes the scale is not read.
template <MomentLayout kLayout>
__device__ float2 read_moment(const void* data, int64_t at, int count, bool paired, float scale,
                              const SharedTable& table) {
  if constexpr (kLayout == MomentLayout::kFloat32 || kLayout == MomentLayout::kBFloat16) {
    return read_pair(data, kLayout == MomentLayout::kBFloat16, at, count, paired);
  } else {
    const auto* codes = static_cast<const uint8_t*>(data);
    uint32_t first = 0;
    uint32_t second = 0;
    if (kLayout == MomentLayout::kPackedCodes) {
      const uint32_t both =
          count > 0 ? codes[at / 2] : 0;  // blocks of these begin at even elements
      first = both >> 4;
      second = both & 15;
    } else if (paired && count == 2) {
      const uint32_t both = *reinterpret_cast<const uint16_t*>(codes + at);
      first = both & 0xffU;
      second = both >> 8;
    } else {
      first = count > 0 ? codes[at] : 0;
      second = count > 1 ? codes[at + 1] : 0;
    }
    return {table.values[first] * scale, table.values[second] * scale};
  }
}

template <MomentLayout kLayout>
constexpr bool kHasCodes = kLayout == MomentLayout::kCodes || kLayout == MomentLayout::kPackedCodes;

// Where a warp's block lies in its shard, and how its elements can be moved.
struct Block {
  int64_t index;
  int64_t begin;
  int64_t end;
  bool paired;  // pairs of neighbours are aligned

  __device__ int64_t pair(int k, int lane) const { return begin + 64 * k + 2 * lane; }
  __device__ int count(int64_t at) const {
    return static_cast<int>(max(int64_t{0}, min(int64_t{2}, end - at)));
  }
};

template <int kPerLane, MomentLayout kLayout>
__device__ void write_moment(void* data, float* scales, const Block& block, int lane,
                             const float (&values)[kPerLane], uint32_t amax_bits,
                             const SharedTable& table) {
  const float scale = kHasCodes<kLayout> ? scale_of(amax_bits, table) : 1.0F;
  if (kHasCodes<kLayout> && lane == 0) {
    scales[block.index] = scale;
  }
#pragma unroll
  for (int k = 0; k < kPerLane / 2; ++k) {
    const int64_t at = block.pair(k, lane);
    const int count = block.count(at);
    const float first = values[2 * k];
    const float second = values[2 * k + 1];
    if constexpr (kLayout == MomentLayout::kFloat32) {
      write_pair_of_floats(data, false, at, __float_as_uint(first), __float_as_uint(second), count,
                           block.paired);
    } else if constexpr (kLayout == MomentLayout::kBFloat16) {
      write_pair_of_floats(data, true, at, cuda::from_float<uint16_t>(first),
                           cuda::from_float<uint16_t>(second), count, block.paired);
    } else if constexpr (kLayout == MomentLayout::kPackedCodes) {
      if (count > 0) {  // blocks of packed codes begin and end at even elements
        static_cast<uint8_t*>(data)[at / 2] =
            static_cast<uint8_t>(encoded(first, scale, table) << 4 | encoded(second, scale, table));
      }
    } else {
      const uint32_t low = encoded(first, scale, table);
      const uint32_t high = encoded(second, scale, table);
      write_pair(static_cast<uint8_t*>(data) + at, static_cast<uint8_t>(low),
                 static_cast<uint8_t>(high), static_cast<uint16_t>(low | high << 8), count,
                 block.paired);
    }
  }
}

// p: a lane's parameters; m, v: its new moments.
template <int kPerLane>
__device__ void write_param(const LowBitAdamTensor& t, const LowBitAdamStep& step,
                            const Block& block, uint32_t* words, int lane,
                            const float (&p)[kPerLane], const float (&m)[kPerLane],
                            const float (&v)[kPerLane]) {
  const LowBitAdamCoefficients& c = step.coefficients;
  const int64_t first_element = t.first_element + block.begin;
  const bool rounds = t.is_param_bf16 && step.stochastic_round;
  const bool shares = rounds && first_element % 8 == 0;
  if (shares) {
    draw_words(words, first_element, step.step, t.rounding_key, lane);
  }
#pragma unroll
  for (int k = 0; k < kPerLane / 2; ++k) {
    const int64_t at = block.pair(k, lane);
    const uint32_t word = shares ? words[cuda::kWarpSize * k + lane] : 0;
    uint32_t bits[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int i = 2 * k + j;
      const float decayed = p[i] - t.decoupled_decay * p[i];
      const float denominator = __fsqrt_rn(v[i]) / c.correction_sqrt + c.eps;
      const float updated = decayed - t.lr * (m[i] / c.correction1) / denominator;
      if (!t.is_param_bf16) {
        bits[j] = __float_as_uint(updated);
      } else if (shares) {
        bits[j] = stochastic(updated, j == 0 ? word & 0xffffU : word >> 16);
      } else if (rounds) {
        bits[j] = stochastic(updated,
                             random_bits_of(t.first_element + at + j, step.step, t.rounding_key));
      } else {
        bits[j] = cuda::from_float<uint16_t>(updated);
      }
    }
    write_pair_of_floats(t.param, t.is_param_bf16, at, bits[0], bits[1], block.count(at),
                         block.paired);
  }
}

template <typename... Pointers>
__device__ bool are_aligned(int64_t alignment, const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % alignment == 0) && ...);
}

template <int kPerLane, bool kOnlyMaxima, MomentLayout kLayout>
__device__ void update_block(const LowBitAdamTensor& t, const LowBitAdamStep& step,
                             const Tables& tables, int64_t index, int64_t num_blocks, int lane) {
  constexpr int64_t kBlockSize = kPerLane * cuda::kWarpSize;
  const int32_t slot = index == 0 && t.first_slot >= 0 ? t.first_slot
                       : index + 1 == num_blocks       ? t.last_slot
                                                       : -1;
  if (kOnlyMaxima && slot < 0) {
    return;
  }
  const LowBitAdamCoefficients& c = step.coefficients;
  const int64_t first = (t.first_element / kBlockSize + index) * kBlockSize - t.first_element;
  const int64_t begin = max(first, int64_t{0});
  const Block block{index, begin, min(first + kBlockSize, t.num_elements),
                    begin % 2 == 0 && are_aligned(8, t.param, t.grad, t.exp_avg, t.exp_avg_sq)};
  const float scale_avg = kHasCodes<kLayout> ? t.exp_avg_scale[index] : 1.0F;
  const float scale_sq = kHasCodes<kLayout> ? t.exp_avg_sq_scale[index] : 1.0F;
  float p[kPerLane];
  float m[kPerLane];
  float v[kPerLane];
  uint32_t max_avg = 0;
  uint32_t max_sq = 0;
#pragma unroll
  for (int k = 0; k < kPerLane / 2; ++k) {
    const int64_t at = block.pair(k, lane);
    const int count = block.count(at);
    const float2 param = read_pair(t.param, t.is_param_bf16, at, count, block.paired);
    const float2 grad = read_pair(t.grad, t.is_grad_bf16, at, count, block.paired);
    const float2 avg =
        read_moment<kLayout>(t.exp_avg, at, count, block.paired, scale_avg, tables.exp_avg);
    const float2 sq =
        read_moment<kLayout>(t.exp_avg_sq, at, count, block.paired, scale_sq, tables.exp_avg_sq);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int i = 2 * k + j;
      if (j >= count) {
        p[i] = m[i] = v[i] = 0.0F;
        continue;
      }
      p[i] = j == 0 ? param.x : param.y;
      const float scaled = (j == 0 ? grad.x : grad.y) * c.gradient_scale;
      const float g = t.l2_decay != 0.0F ? scaled + t.l2_decay * p[i] : scaled;
      m[i] = lerp(j == 0 ? avg.x : avg.y, g, c.grad_weight);
      v[i] = lerp(j == 0 ? sq.x : sq.y, g * g, c.grad_sq_weight);
      max_avg = max(max_avg, __float_as_uint(m[i]) & 0x7fffffffU);
      max_sq = max(max_sq, __float_as_uint(v[i]) & 0x7fffffffU);
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
  write_param<kPerLane>(t, step, block, tables.words, lane, p, m, v);
  write_moment<kPerLane, kLayout>(t.exp_avg, t.exp_avg_scale, block, lane, m, max_avg,
                                  tables.exp_avg);
  write_moment<kPerLane, kLayout>(t.exp_avg_sq, t.exp_avg_sq_scale, block, lane, v, max_sq,
                                  tables.exp_avg_sq);
}

template <int kPerLane, bool kOnlyMaxima>
__device__ void update_block_of(const LowBitAdamTensor& t, const LowBitAdamStep& step,
                                const Tables& tables, int64_t index, int64_t num_blocks, int lane) {
  switch (t.layout) {
    case MomentLayout::kFloat32:
      return update_block<kPerLane, kOnlyMaxima, MomentLayout::kFloat32>(t, step, tables, index,
                                                                         num_blocks, lane);
    case MomentLayout::kBFloat16:
      return update_block<kPerLane, kOnlyMaxima, MomentLayout::kBFloat16>(t, step, tables, index,
                                                                          num_blocks, lane);
    case MomentLayout::kCodes:
      return update_block<kPerLane, kOnlyMaxima, MomentLayout::kCodes>(t, step, tables, index,
                                                                       num_blocks, lane);
    case MomentLayout::kPackedCodes:
      return update_block<kPerLane, kOnlyMaxima, MomentLayout::kPackedCodes>(t, step, tables, index,
                                                                             num_blocks, lane);
  }
}

__host__ __device__ int64_t num_blocks_of(const LowBitAdamTensor& t, int64_t block_size) {
  const int64_t end_block = (t.first_element + t.num_elements + block_size - 1) / block_size;
  return t.num_elements == 0 ? 0 : end_block - t.first_element / block_size;
}

__device__ int tensor_of(const Launch& launch, int block) {
  int index = 0;  // the last tensor that begins at or before `block`
  for (int step = kMaxTensors / 2; step > 0; step /= 2) {
    if (index + step < launch.num_tensors && launch.first_block[index + step] <= block) {
      index += step;
    }
  }
  return index;
}

// kWarps blocks of a moment are a piece of work; pieces of all tensors are numbered one behind the
// other, and a block of the grid takes each gridDim.x-th.
template <int kPerLane, bool kOnlyMaxima>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    low_bit_adam_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(16) uint32_t shared[];
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  uint32_t* free = shared + kWarps * kWordsPerWarp;
  Tables tables;
  tables.exp_avg = copy_table(launch.step.exp_avg_table, free);
  tables.exp_avg_sq = copy_table(launch.step.exp_avg_sq_table, free);
  tables.words = shared + warp * kWordsPerWarp;
  __syncthreads();
  const int num_pieces = launch.first_block[launch.num_tensors];
  for (int piece = static_cast<int>(blockIdx.x); piece < num_pieces;
       piece += static_cast<int>(gridDim.x)) {
    const int index = tensor_of(launch, piece);
    const LowBitAdamTensor& t = launch.tensors[index];
    const int64_t num_blocks = num_blocks_of(t, kPerLane * cuda::kWarpSize);
    const int64_t block = int64_t{piece - launch.first_block[index]} * kWarps + warp;
    if (block < num_blocks) {
      update_block_of<kPerLane, kOnlyMaxima>(t, launch.step, tables, block, num_blocks,
                                             static_cast<int>(threadIdx.x) % cuda::kWarpSize);
    }
  }
}

int num_processors() {
  int device = 0;
  int count = 0;
  cuda::check(cudaGetDevice(&device), "low_bit_adam");
  cuda::check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
              "low_bit_adam");
  return count;
}

template <int kPerLane, bool kOnlyMaxima>
void launch_kernel(const Launch& launch, int64_t num_pieces, cudaStream_t stream) {
  const auto kernel = low_bit_adam_kernel<kPerLane, kOnlyMaxima>;
  const int words = kWarps * kWordsPerWarp + 2 * kNumValues + num_cells(launch.step.exp_avg_table) +
                    num_cells(launch.step.exp_avg_sq_table);
  const auto bytes = static_cast<int>(words * sizeof(uint32_t));
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
              "low_bit_adam");
  const auto grid = static_cast<unsigned>(
      std::min<int64_t>(num_pieces, int64_t{num_processors()} * kBlocksPerProcessor));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream>>>(launch);
  cuda::check_launch("low_bit_adam");
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
      launch_kernel<kPerLane, kOnlyMaxima>(launch, grid, stream);
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
