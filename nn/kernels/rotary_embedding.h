#pragma once

#include <cstdint>

namespace narrowgauge::nn::kernels {

// One row of qkv: (num_heads + 2 * num_kv_heads) * head_dim channels, q heads first, then k, v.
struct QkvShape {
  int64_t length = 0;  // T; a row index r stands for batch r / T, position r % T
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};

// Heads of one of q, k, v: element (b, h, t, d) lies at b * batch + h * head + t * row + d.
template <typename T>
struct HeadView {
  T* data = nullptr;
  int64_t batch = 0;
  int64_t head = 0;
  int64_t row = 0;
};

template <typename T>
struct QkvHeads {
  HeadView<T> q;
  HeadView<T> k;
  HeadView<T> v;
};

// T is float, or uint16_t for bf16. For rows [begin, end) of qkv: [B * T, width], contiguous.
// cos, sin: [T, head_dim / 2], those of the first position on.
void split_and_rotate(const float* qkv, QkvHeads<float> out, const float* cos, const float* sin,
                      QkvShape shape, int64_t begin, int64_t end);
void split_and_rotate(const uint16_t* qkv, QkvHeads<uint16_t> out, const float* cos,
                      const float* sin, QkvShape shape, int64_t begin, int64_t end);

// The gradient of the above: rotates back and joins into grad_qkv.
void rotate_back_and_join(QkvHeads<const float> grads, float* grad_qkv, const float* cos,
                          const float* sin, QkvShape shape, int64_t begin, int64_t end);
void rotate_back_and_join(QkvHeads<const uint16_t> grads, uint16_t* grad_qkv, const float* cos,
                          const float* sin, QkvShape shape, int64_t begin, int64_t end);

}  // namespace narrowgauge::nn::kernels
