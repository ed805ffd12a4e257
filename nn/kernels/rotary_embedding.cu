#include <algorithm>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "nn/kernels/rotary_embedding_cuda.h"

// Bytes an element of qkv in bf16: 4 in either direction. A thread takes kWidth channels of the
// first half of a head and their partners in the second half.

namespace narrowgauge::nn::kernels {
namespace {

using cuda::ceil_div;
using cuda::kLanes;
using cuda::kWarpSize;
using cuda::load;
using cuda::store;

constexpr int kMaxThreads = 512;

// Head `head` of the token at (batch, t); heads are counted as in a row of qkv.
template <typename T>
__device__ T* head_at(const QkvHeads<T>& heads, const QkvShape& shape, unsigned batch, unsigned t,
                      unsigned head) {
  const HeadView<T>* view = &heads.q;
  if (head >= shape.num_heads + shape.num_kv_heads) {
    view = &heads.v;
    head -= shape.num_heads + shape.num_kv_heads;
  } else if (head >= shape.num_heads) {
    view = &heads.k;
    head -= shape.num_heads;
  }
  return view->data + batch * view->batch + head * view->head + t * view->row;
}

// A block a row. kBack: the inverse rotation, from heads into qkv. Indices within a row are 32
// bits: divisions of 64 would take longer than the memory.
template <int kWidth, bool kBack, typename Packed, typename Heads>
__global__ void rotate_kernel(Packed* qkv, Heads heads, const float* cos, const float* sin,
                              QkvShape shape) {
  const auto length = static_cast<unsigned>(shape.length);
  const unsigned batch = blockIdx.x / length;
  const unsigned t = blockIdx.x - batch * length;
  const auto half = static_cast<unsigned>(shape.head_dim / 2);
  const unsigned steps = half / kWidth;  // threads of a head
  const auto num_heads = static_cast<unsigned>(shape.num_heads + 2 * shape.num_kv_heads);
  Packed* of_row = qkv + int64_t{blockIdx.x} * num_heads * shape.head_dim;
  for (unsigned j = threadIdx.x; j < num_heads * steps; j += blockDim.x) {
    const unsigned head = j / steps;
    const unsigned i = (j - head * steps) * kWidth;
    Packed* packed = of_row + head * shape.head_dim + i;
    auto* split = head_at(heads, shape, batch, t, head) + i;
    float a[kWidth];
    float b[kWidth];
    if constexpr (kBack) {
      load(split, a);
      load(split + half, b);
    } else {
      load(packed, a);
      load(packed + half, b);
    }
    if (head < shape.num_heads + shape.num_kv_heads) {
      float c[kWidth];
      float s[kWidth];
      load(cos + t * half + i, c);
      load(sin + t * half + i, s);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float sine = kBack ? -s[k] : s[k];
        const float rotated = a[k] * c[k] - b[k] * sine;
        b[k] = b[k] * c[k] + a[k] * sine;
        a[k] = rotated;
      }
    }
    if constexpr (kBack) {
      store(packed, a);
      store(packed + half, b);
    } else {
      store(split, a);
      store(split + half, b);
    }
  }
}

template <typename T>
bool is_vectorizable(const HeadView<T>& view) {
  constexpr int64_t kWidth = kLanes<std::remove_const_t<T>>;
  return cuda::is_vectorizable(kWidth, view.data) && view.batch % kWidth == 0 &&
         view.head % kWidth == 0 && view.row % kWidth == 0;
}

template <typename T, bool kBack, typename Packed, typename Heads>
void rotate(Packed* qkv, const Heads& heads, const float* cos, const float* sin,
            const QkvShape& shape, int64_t rows, cudaStream_t stream) {
  const int64_t half = shape.head_dim / 2;
  const int64_t pairs = (shape.num_heads + 2 * shape.num_kv_heads) * half;  // of a row
  if (rows == 0 || pairs == 0) {
    return;
  }
  constexpr int kWidth = kLanes<T>;
  const bool vectorizable = half % kWidth == 0 && cuda::is_vectorizable(half, qkv, cos, sin) &&
                            is_vectorizable(heads.q) && is_vectorizable(heads.k) &&
                            is_vectorizable(heads.v);
  const auto grid = static_cast<unsigned>(rows);
  const auto threads_for = [](int64_t count) {
    return static_cast<unsigned>(
        std::min<int64_t>(kMaxThreads, ceil_div<int64_t>(count, kWarpSize) * kWarpSize));
  };
  if (vectorizable) {
    rotate_kernel<kWidth, kBack>
        <<<grid, threads_for(pairs / kWidth), 0, stream>>>(qkv, heads, cos, sin, shape);
  } else {
    rotate_kernel<1, kBack><<<grid, threads_for(pairs), 0, stream>>>(qkv, heads, cos, sin, shape);
  }
  cuda::check_launch("rotary_embedding");
}

}  // namespace

template <typename T>
void split_and_rotate(const T* qkv, const QkvHeads<T>& out, const float* cos, const float* sin,
                      const QkvShape& shape, int64_t rows, cuda::StreamHandle stream) {
  rotate<T, false>(qkv, out, cos, sin, shape, rows, stream);
}

template <typename T>
void rotate_back_and_join(const QkvHeads<const T>& grads, T* grad_qkv, const float* cos,
                          const float* sin, const QkvShape& shape, int64_t rows,
                          cuda::StreamHandle stream) {
  rotate<T, true>(grad_qkv, grads, cos, sin, shape, rows, stream);
}

#define NG_INSTANTIATE(T)                                                                      \
  template void split_and_rotate(const T*, const QkvHeads<T>&, const float*, const float*,     \
                                 const QkvShape&, int64_t, cuda::StreamHandle);                \
  template void rotate_back_and_join(const QkvHeads<const T>&, T*, const float*, const float*, \
                                     const QkvShape&, int64_t, cuda::StreamHandle);
NG_INSTANTIATE(float)
NG_INSTANTIATE(uint16_t)
#undef NG_INSTANTIATE

}  // namespace narrowgauge::nn::kernels
