#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "optim/kernels/codebook.cuh"
#include "optim/kernels/division.cuh"
#include "optim/kernels/low_bit_adam_cuda.h"
#include "optim/kernels/units.cuh"
#include "vectorize/philox.h"

// A warp takes a block, a lane its neighbours of kPerLane elements. By count, instructions weigh
// more than memory (10 bytes an element of bf16 with 8-bit codes), and to fetch them more still,
// so: a layout of moments is a kernel of its own; what is seldom is out of line; a lane draws the
// random words of eight elements at once; the tables lie in shared memory, where 32 lanes that look
// up 32 places meet in three or four of a bank, and blocks of the grid stay to use them again.
// Built with -fmad=false: every operation is rounded on its own, as on the CPU.

namespace narrowgauge::optim::kernels {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksPerProcessor = 2;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kBlocksPerPiece = 4 * kWarps;
// As many as fit into the 4 KiB of a kernel's arguments.
constexpr int kMaxTensors = 32;
constexpr unsigned kAllLanes = 0xffffffffU;

struct Launch {
  LowBitAdamTensor tensors[kMaxTensors];
  int first_piece[kMaxTensors + 1];  // of pieces; the last entry is their number
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
};

// What a lane holds of a block: [begin, begin + count) of the shard; count <= kPerLane.
struct Lane {
  int64_t begin;
  int count;
};

template <MomentLayout kLayout>
constexpr bool kHasCodes = kLayout == MomentLayout::kCodes || kLayout == MomentLayout::kPackedCodes;

template <MomentLayout kLayout>
constexpr int kBitsOf = kLayout == MomentLayout::kPackedCodes ? 4 : 8;  // of a code

// A lane's part of a moment, as it lies in memory.
template <MomentLayout kLayout, int kPerLane>
struct Moment {
  uint32_t words[kPerLane];

  // Blocks of packed codes begin and end at even elements.
  __device__ void load(const void* data, const Lane& lane) {
    if constexpr (kLayout == MomentLayout::kPackedCodes) {
      load_units<kPerLane / 2>(static_cast<const uint8_t*>(data) + lane.begin / 2, lane.count / 2,
                               words);
    } else if constexpr (kLayout == MomentLayout::kCodes) {
      load_units<kPerLane>(static_cast<const uint8_t*>(data) + lane.begin, lane.count, words);
    } else {
      load_floats(data, kLayout == MomentLayout::kBFloat16, lane.begin, lane.count, words);
    }
  }

  __device__ void store(void* data, const Lane& lane) const {
    if constexpr (kLayout == MomentLayout::kPackedCodes) {
      store_units<kPerLane / 2>(static_cast<uint8_t*>(data) + lane.begin / 2, lane.count / 2,
                                words);
    } else if constexpr (kLayout == MomentLayout::kCodes) {
      store_units<kPerLane>(static_cast<uint8_t*>(data) + lane.begin, lane.count, words);
    } else {
      store_floats(data, kLayout == MomentLayout::kBFloat16, lane.begin, lane.count, words);
    }
  }

  __device__ void decode(float (&values)[kPerLane], float scale, const SharedTable& table) const {
    if constexpr (kHasCodes<kLayout>) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        constexpr int kBits = kBitsOf<kLayout>;
        const int place = kBits * (kBits == 4 ? i ^ 1 : i);
        values[i] = decoded<kBits>(words[place / 32], place % 32, table) * scale;
      }
    } else {
      unpack_floats(values, kLayout == MomentLayout::kBFloat16, words);
    }
  }

  // values: new ones divided by their scale, where there are codes.
  __device__ void encode(const float (&values)[kPerLane], const SharedTable& table) {
    if constexpr (kHasCodes<kLayout>) {
      constexpr int kBits = kBitsOf<kLayout>;
      constexpr uint32_t kMask = (1U << kBits) - 1;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        words[i] = 0;
      }
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int place = kBits * (kBits == 4 ? i ^ 1 : i);
        words[place / 32] |= (encoded(values[i], table) & kMask) << place % 32;
      }
    } else {
      pack_floats(words, kLayout == MomentLayout::kBFloat16, values);
    }
  }
};

// x rounded to bf16 by 16 random bits.
__device__ uint32_t stochastic(float x, uint32_t random) {
  const uint32_t bits = __float_as_uint(x);
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
  return is_nan ? bits >> 16 | 0x40U : (bits + random) >> 16;
}

__device__ __noinline__ uint32_t random_bits_of(uint64_t element, uint64_t step, uint64_t key) {
  const vectorize::PhiloxWords words = vectorize::philox(element / 8, step, key);
  const uint32_t word = words.word[element % 8 / 2];
  return element % 2 == 0 ? word & 0xffffU : word >> 16;
}

// For elements from `first` on, two a word, the even one in the lower half.
template <int kPerLane>
__device__ void draw(uint32_t (&words)[kPerLane / 2], uint64_t first, uint64_t step, uint64_t key) {
  if (first % kPerLane == 0) {  // of one draw
    const vectorize::PhiloxWords drawn = vectorize::philox(first / 8, step, key);
    const bool is_upper = first % 8 != 0;
#pragma unroll
    for (int i = 0; i < kPerLane / 2; ++i) {
      words[i] = is_upper ? drawn.word[(i + kPerLane / 2) % 4] : drawn.word[i];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerLane / 2; ++i) {
    words[i] = random_bits_of(first + 2 * i, step, key) |
               random_bits_of(first + 2 * i + 1, step, key) << 16;
  }
}

// The bits of the largest; NaN above infinity.
template <int kPerLane>
__device__ uint32_t max_magnitude(const float (&values)[kPerLane]) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    largest = max(largest, __float_as_uint(values[i]) & 0x7fffffffU);
  }
  return largest;
}

// Its bits.
__device__ constexpr uint32_t power_of_two(int exponent) {
  return static_cast<uint32_t>(127 + exponent) << 23;
}

__device__ bool is_between(float x, uint32_t smallest_bits, uint32_t largest_bits) {
  return __float_as_uint(x) >= smallest_bits && __float_as_uint(x) <= largest_bits;
}

// A parameter after the step, whatever the numbers are.
__device__ __noinline__ float updated(float p, float m, float v, const LowBitAdamTensor& t,
                                      const LowBitAdamCoefficients& c) {
  const float decayed = p - t.decoupled_decay * p;
  const float denominator = __fsqrt_rn(v) / c.correction_sqrt + c.eps;
  return decayed - t.lr * (m / c.correction1) / denominator;
}

// Whether division.cuh's quotients are right for all that a lane computes: nothing between the
// moments and the step underflows or overflows. Zeros are not ordinary.
template <int kPerLane>
__device__ bool are_ordinary(const float (&m)[kPerLane], const float (&v)[kPerLane], float lr,
                             const LowBitAdamCoefficients& c) {
  constexpr uint32_t kLeastAvg = power_of_two(-60);
  constexpr uint32_t kLeastSq = power_of_two(-100);
  constexpr uint32_t kMost = power_of_two(20);
  uint32_t least_avg = kMost;
  uint32_t least_sq = kMost;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    least_avg = min(least_avg, __float_as_uint(m[i]) & 0x7fffffffU);
    least_sq = min(least_sq, __float_as_uint(v[i]));
  }
  return least_avg >= kLeastAvg && max_magnitude(m) <= kMost && least_sq >= kLeastSq &&
         max_magnitude(v) <= kMost && is_between(lr, power_of_two(-32), kMost) &&
         is_between(c.correction1, power_of_two(-16), power_of_two(0)) &&
         is_between(c.correction_sqrt, power_of_two(-16), power_of_two(0)) && c.eps >= 0.0F &&
         c.eps <= 1.0F;
}

// The parameters after the step; m, v: a lane's new moments.
template <int kPerLane>
__device__ void update_params(float (&p)[kPerLane], const float (&m)[kPerLane],
                              const float (&v)[kPerLane], const LowBitAdamTensor& t,
                              const LowBitAdamCoefficients& c) {
  if (are_ordinary(m, v, t.lr, c)) {
    const Divisor correction1 = divisor_of(c.correction1);
    const Divisor correction_sqrt = divisor_of(c.correction_sqrt);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const float decayed = p[i] - t.decoupled_decay * p[i];
      const float denominator = quotient(square_root(v[i]), correction_sqrt) + c.eps;
      p[i] = decayed - quotient(t.lr * quotient(m[i], correction1), denominator);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    p[i] = updated(p[i], m[i], v[i], t, c);
  }
}

template <int kPerLane>
__device__ void write_params(const LowBitAdamTensor& t, const LowBitAdamStep& step,
                             const Lane& lane, const float (&p)[kPerLane]) {
  uint32_t words[kPerLane];
  if (t.is_param_bf16 && step.stochastic_round) {
    uint32_t random[kPerLane / 2];
    draw<kPerLane>(random, static_cast<uint64_t>(t.first_element + lane.begin), step.step,
                   t.rounding_key);
#pragma unroll
    for (int i = 0; i < kPerLane / 2; ++i) {
      words[i] = stochastic(p[2 * i], random[i] & 0xffffU) |
                 stochastic(p[2 * i + 1], random[i] >> 16) << 16;
    }
  } else {
    pack_floats(words, t.is_param_bf16, p);
  }
  store_floats(t.param, t.is_param_bf16, lane.begin, lane.count, words);
}

// A lane's part of a block of a moment: codes and scale of its new values, which are overwritten.
template <int kPerLane, MomentLayout kLayout>
__device__ void write_moment(void* data, float* scale, const Lane& lane, float (&values)[kPerLane],
                             uint32_t amax_bits, const SharedTable& table) {
  if constexpr (kHasCodes<kLayout>) {
    const Divisor divisor = divisor_of(scale_of(amax_bits, table));
    if (threadIdx.x % cuda::kWarpSize == 0) {
      *scale = divisor.value;
    }
    // No format has a boundary between codes below 2^-30, so small quotients may err in a bit.
    if (is_ordinary(divisor.value)) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        values[i] = quotient(values[i], divisor);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const float x = divide(values[i], divisor.value);
        values[i] = isnan(x) ? copysignf(INFINITY, x) : x;
      }
    }
  }
  Moment<kLayout, kPerLane> moment;
  moment.encode(values, table);
  moment.store(data, lane);
}

// Block `index` of the shard's `num_blocks`.
template <int kPerLane, bool kOnlyMaxima, MomentLayout kLayout>
__device__ void update_block(const LowBitAdamTensor& t, const LowBitAdamStep& step,
                             const Tables& tables, int64_t index, int64_t num_blocks) {
  constexpr int64_t kBlockSize = kPerLane * cuda::kWarpSize;
  const int32_t slot = index == 0 && t.first_slot >= 0 ? t.first_slot
                       : index + 1 == num_blocks       ? t.last_slot
                                                       : -1;
  if (kOnlyMaxima && slot < 0) {
    return;
  }
  const LowBitAdamCoefficients& c = step.coefficients;
  const int64_t first = kBlockSize * index - (t.first_element & (kBlockSize - 1));
  const int64_t end = min(first + kBlockSize, t.num_elements);
  Lane lane;
  lane.begin = max(first, int64_t{0}) + kPerLane * (threadIdx.x % cuda::kWarpSize);
  lane.count = static_cast<int>(max(min(end - lane.begin, int64_t{kPerLane}), int64_t{0}));
  uint32_t params[kPerLane];
  uint32_t grads[kPerLane];
  Moment<kLayout, kPerLane> exp_avg;
  Moment<kLayout, kPerLane> exp_avg_sq;
  load_floats(t.param, t.is_param_bf16, lane.begin, lane.count, params);
  load_floats(t.grad, t.is_grad_bf16, lane.begin, lane.count, grads);
  exp_avg.load(t.exp_avg, lane);
  exp_avg_sq.load(t.exp_avg_sq, lane);
  const float scale_avg = kHasCodes<kLayout> ? t.exp_avg_scale[index] : 1.0F;
  const float scale_sq = kHasCodes<kLayout> ? t.exp_avg_sq_scale[index] : 1.0F;
  float p[kPerLane];
  float g[kPerLane];
  float m[kPerLane];
  float v[kPerLane];
  unpack_floats(p, t.is_param_bf16, params);
  unpack_floats(g, t.is_grad_bf16, grads);
  exp_avg.decode(m, scale_avg, tables.exp_avg);
  exp_avg_sq.decode(v, scale_sq, tables.exp_avg_sq);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    g[i] *= c.gradient_scale;
  }
  if (t.l2_decay != 0.0F) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      g[i] += t.l2_decay * p[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    m[i] = lerp(m[i], g[i], c.grad_weight);
    v[i] = lerp(v[i], g[i] * g[i], c.grad_sq_weight);
  }
  if (lane.count < kPerLane) {  // code 0 of what is not there may be any value
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      m[i] = i < lane.count ? m[i] : 0.0F;
      v[i] = i < lane.count ? v[i] : 0.0F;
    }
  }
  uint32_t max_avg = __reduce_max_sync(kAllLanes, max_magnitude(m));
  uint32_t max_sq = __reduce_max_sync(kAllLanes, max_magnitude(v));
  if (kOnlyMaxima) {
    if (threadIdx.x % cuda::kWarpSize == 0) {
      step.maxima[2 * slot] = static_cast<int32_t>(max_avg);
      step.maxima[2 * slot + 1] = static_cast<int32_t>(max_sq);
    }
    return;
  }
  if (slot >= 0) {
    max_avg = static_cast<uint32_t>(step.maxima[2 * slot]);
    max_sq = static_cast<uint32_t>(step.maxima[2 * slot + 1]);
  }
  update_params(p, m, v, t, c);
  write_params<kPerLane>(t, step, lane, p);
  write_moment<kPerLane, kLayout>(t.exp_avg, t.exp_avg_scale + index, lane, m, max_avg,
                                  tables.exp_avg);
  write_moment<kPerLane, kLayout>(t.exp_avg_sq, t.exp_avg_sq_scale + index, lane, v, max_sq,
                                  tables.exp_avg_sq);
}

__host__ __device__ int64_t num_blocks_of(const LowBitAdamTensor& t, int64_t block_size) {
  const int64_t end_block = (t.first_element + t.num_elements + block_size - 1) / block_size;
  return t.num_elements == 0 ? 0 : end_block - t.first_element / block_size;
}

__device__ int tensor_of(const Launch& launch, int piece) {
  int index = 0;  // the last tensor that begins at or before `piece`
  for (int step = kMaxTensors / 2; step > 0; step /= 2) {
    if (index + step < launch.num_tensors && launch.first_piece[index + step] <= piece) {
      index += step;
    }
  }
  return index;
}

// kBlocksPerPiece blocks of a moment are a piece of work; pieces of all tensors are numbered one
// behind the other, and a block of the grid takes each gridDim.x-th.
template <int kPerLane, bool kOnlyMaxima, MomentLayout kLayout>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    low_bit_adam_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(kValuesBytes) uint32_t shared[];
  Tables tables{};
  if constexpr (kHasCodes<kLayout>) {
    auto* values = reinterpret_cast<float*>(shared);
    uint32_t* cells = shared + 2 * kNumValues;
    const LowBitAdamStep& step = launch.step;
    tables.exp_avg = copy_table(step.exp_avg_table, values, cells);
    tables.exp_avg_sq = copy_table(step.exp_avg_sq_table, values + kNumValues,
                                   cells + num_cells(step.exp_avg_table));
    __syncthreads();
  }
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int num_pieces = launch.first_piece[launch.num_tensors];
  for (int piece = static_cast<int>(blockIdx.x); piece < num_pieces;
       piece += static_cast<int>(gridDim.x)) {
    const int index = tensor_of(launch, piece);
    const LowBitAdamTensor& t = launch.tensors[index];
    const int64_t num_blocks = num_blocks_of(t, kPerLane * cuda::kWarpSize);
    const int64_t first = int64_t{piece - launch.first_piece[index]} * kBlocksPerPiece;
    const int64_t end = min(first + kBlocksPerPiece, num_blocks);
    for (int64_t block = first + warp; block < end; block += kWarps) {
      update_block<kPerLane, kOnlyMaxima, kLayout>(t, launch.step, tables, block, num_blocks);
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

template <int kPerLane, bool kOnlyMaxima, MomentLayout kLayout>
void launch_kernel(const Launch& launch, int64_t num_pieces, cudaStream_t stream) {
  const auto kernel = low_bit_adam_kernel<kPerLane, kOnlyMaxima, kLayout>;
  const int words = kHasCodes<kLayout> ? 2 * kNumValues + num_cells(launch.step.exp_avg_table) +
                                             num_cells(launch.step.exp_avg_sq_table)
                                       : 0;
  const auto bytes = static_cast<int>(words * sizeof(uint32_t));
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
              "low_bit_adam");
  const auto grid = static_cast<unsigned>(
      std::min<int64_t>(num_pieces, int64_t{num_processors()} * kBlocksPerProcessor));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream>>>(launch);
  cuda::check_launch("low_bit_adam");
}

// The tensors of one layout.
template <int kPerLane, bool kOnlyMaxima, MomentLayout kLayout>
void run_layout(std::span<const LowBitAdamTensor> tensors, const LowBitAdamStep& step,
                cuda::StreamHandle stream) {
  Launch launch{};
  launch.step = step;
  int64_t num_pieces = 0;
  const auto flush = [&] {
    if (num_pieces > 0) {
      launch.first_piece[launch.num_tensors] = static_cast<int>(num_pieces);
      launch_kernel<kPerLane, kOnlyMaxima, kLayout>(launch, num_pieces, stream);
    }
    launch.num_tensors = 0;
    num_pieces = 0;
  };
  for (const LowBitAdamTensor& tensor : tensors) {
    const bool is_needed = !kOnlyMaxima || tensor.first_slot >= 0 || tensor.last_slot >= 0;
    if (tensor.layout != kLayout || tensor.num_elements == 0 || !is_needed) {
      continue;
    }
    if (launch.num_tensors == kMaxTensors) {
      flush();
    }
    launch.tensors[launch.num_tensors] = tensor;
    launch.first_piece[launch.num_tensors] = static_cast<int>(num_pieces);
    ++launch.num_tensors;
    num_pieces +=
        cuda::ceil_div(num_blocks_of(tensor, kPerLane * cuda::kWarpSize), int64_t{kBlocksPerPiece});
  }
  flush();
}

template <int kPerLane, bool kOnlyMaxima>
void run(std::span<const LowBitAdamTensor> tensors, const LowBitAdamStep& step,
         cuda::StreamHandle stream) {
  run_layout<kPerLane, kOnlyMaxima, MomentLayout::kFloat32>(tensors, step, stream);
  run_layout<kPerLane, kOnlyMaxima, MomentLayout::kBFloat16>(tensors, step, stream);
  run_layout<kPerLane, kOnlyMaxima, MomentLayout::kCodes>(tensors, step, stream);
  run_layout<kPerLane, kOnlyMaxima, MomentLayout::kPackedCodes>(tensors, step, stream);
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
