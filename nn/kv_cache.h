#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "nn/transformer_config.h"

namespace narrowgauge::nn {

// Keys and values of the tokens seen so far, for generation. Room for `max_len` tokens of a layer
// is taken when it appends first, in the dtype and on the device of what it appends.
class KVCache {
 public:
  KVCache(const TransformerConfig& config, int64_t max_len)
      : keys_(config.num_layers), values_(config.num_layers), capacity_(max_len) {}

  // Tokens already stored: the position of the next one.
  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }

  // Stores k, v ([batch, num_kv_heads, t, head_dim]) behind the tokens of `layer` and returns views
  // of all length() + t of them. REQUIRES: length() + t <= capacity().
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& k, const at::Tensor& v);

  // Called once per forward pass, after every layer has appended its t tokens.
  void advance(int64_t t) { length_ += t; }

 private:
  std::vector<at::Tensor> keys_;    // per layer [batch, num_kv_heads, capacity, head_dim]
  std::vector<at::Tensor> values_;  // the same
  int64_t length_ = 0;
  int64_t capacity_;
};

}  // namespace narrowgauge::nn
