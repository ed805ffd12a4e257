#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "nn/kernels/dropout_cuda.h"
#include "vectorize/philox.h"

namespace narrowgauge::nn::kernels {
namespace {

constexpr int64_t kWordsPerBlock = 4;
constexpr int kThreads = 256;

// One thread a Philox block. A shard may begin and end inside of one.
template <typename T>
__global__ void dropout_kernel(const T* x, T* out, int64_t first, int64_t count,
                               DropoutFactors factors) {
  const int64_t block = first / kWordsPerBlock + int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t begin = block * kWordsPerBlock - first;
  if (begin >= count) {
    return;
  }
  const vectorize::PhiloxWords words =
      vectorize::philox(static_cast<uint64_t>(block), factors.step, factors.key);
#pragma unroll
  for (int i = 0; i < kWordsPerBlock; ++i) {
    const int64_t at = begin + i;
    if (at >= 0 && at < count) {
      const float factor = words.word[i] < factors.threshold ? factors.dropped : factors.kept;
      out[at] = cuda::from_float<T>(cuda::to_float(x[at]) * factor);
    }
  }
}

}  // namespace

template <typename T>
void dropout(const T* x, T* out, int64_t first, int64_t count, DropoutFactors factors,
             cuda::StreamHandle stream) {
  if (count == 0) {
    return;
  }
  const int64_t blocks = cuda::ceil_div(first + count, kWordsPerBlock) - first / kWordsPerBlock;
  dropout_kernel<<<static_cast<unsigned>(cuda::ceil_div<int64_t>(blocks, kThreads)), kThreads, 0,
                   stream>>>(x, out, first, count, factors);
  cuda::check_launch("dropout");
}

template void dropout(const float*, float*, int64_t, int64_t, DropoutFactors, cuda::StreamHandle);
template void dropout(const uint16_t*, uint16_t*, int64_t, int64_t, DropoutFactors,
                      cuda::StreamHandle);

}  // namespace narrowgauge::nn::kernels
