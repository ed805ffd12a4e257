#include "nn/kernels/rotary_embedding.h"

#include "nn/kernels/rotate_head.h"

// Traffic in bf16, bytes an element of qkv: 4 in either direction.

namespace narrowgauge::nn::kernels {
namespace {

template <typename T>
NG_INLINE void copy_head(const T* __restrict in, T* __restrict out, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; ++i) {
    out[i] = in[i];
  }
}

template <typename T>
NG_INLINE T* head_at(const HeadView<T>& view, int64_t batch, int64_t head, int64_t t) {
  return view.data + batch * view.batch + head * view.head + t * view.row;
}

template <typename T>
NG_INLINE void split_rows(const T* qkv, const QkvHeads<T>& out, const float* cos, const float* sin,
                          const QkvShape& shape, int64_t begin, int64_t end) {
  const int64_t d = shape.head_dim;
  const int64_t half = d / 2;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t batch = row / shape.length;
    const int64_t t = row % shape.length;
    const T* in = qkv + row * (shape.num_heads + 2 * shape.num_kv_heads) * d;
    for (int64_t h = 0; h < shape.num_heads; ++h, in += d) {
      rotate_head<T, T, false>(in, head_at(out.q, batch, h, t), cos + t * half, sin + t * half,
                               half);
    }
    for (int64_t h = 0; h < shape.num_kv_heads; ++h, in += d) {
      rotate_head<T, T, false>(in, head_at(out.k, batch, h, t), cos + t * half, sin + t * half,
                               half);
    }
    for (int64_t h = 0; h < shape.num_kv_heads; ++h, in += d) {
      copy_head(in, head_at(out.v, batch, h, t), d);
    }
  }
}

template <typename T>
NG_INLINE void join_rows(const QkvHeads<const T>& grads, T* grad_qkv, const float* cos,
                         const float* sin, const QkvShape& shape, int64_t begin, int64_t end) {
  const int64_t d = shape.head_dim;
  const int64_t half = d / 2;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t batch = row / shape.length;
    const int64_t t = row % shape.length;
    T* out = grad_qkv + row * (shape.num_heads + 2 * shape.num_kv_heads) * d;
    for (int64_t h = 0; h < shape.num_heads; ++h, out += d) {
      rotate_head<T, T, true>(head_at(grads.q, batch, h, t), out, cos + t * half, sin + t * half,
                              half);
    }
    for (int64_t h = 0; h < shape.num_kv_heads; ++h, out += d) {
      rotate_head<T, T, true>(head_at(grads.k, batch, h, t), out, cos + t * half, sin + t * half,
                              half);
    }
    for (int64_t h = 0; h < shape.num_kv_heads; ++h, out += d) {
      copy_head(head_at(grads.v, batch, h, t), out, d);
    }
  }
}

}  // namespace

NG_TARGET_CLONES void split_and_rotate(const float* qkv, QkvHeads<float> out, const float* cos,
                                       const float* sin, QkvShape shape, int64_t begin,
                                       int64_t end) {
  split_rows(qkv, out, cos, sin, shape, begin, end);
}

NG_TARGET_CLONES void split_and_rotate(const uint16_t* qkv, QkvHeads<uint16_t> out,
                                       const float* cos, const float* sin, QkvShape shape,
                                       int64_t begin, int64_t end) {
  split_rows(qkv, out, cos, sin, shape, begin, end);
}

NG_TARGET_CLONES void rotate_back_and_join(QkvHeads<const float> grads, float* grad_qkv,
                                           const float* cos, const float* sin, QkvShape shape,
                                           int64_t begin, int64_t end) {
  join_rows(grads, grad_qkv, cos, sin, shape, begin, end);
}

NG_TARGET_CLONES void rotate_back_and_join(QkvHeads<const uint16_t> grads, uint16_t* grad_qkv,
                                           const float* cos, const float* sin, QkvShape shape,
                                           int64_t begin, int64_t end) {
  join_rows(grads, grad_qkv, cos, sin, shape, begin, end);
}

}  // namespace narrowgauge::nn::kernels
