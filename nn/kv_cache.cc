#include "nn/kv_cache.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

namespace narrowgauge::nn {

KVCache::KVCache(const TransformerConfig& config, int64_t batch_size, int64_t max_len,
                 const at::TensorOptions& options)
    : capacity_(max_len) {
  const std::vector<int64_t> sizes = {batch_size, config.num_kv_heads, max_len, config.head_dim};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    keys_.push_back(at::empty(sizes, options));
    values_.push_back(at::empty(sizes, options));
  }
}

std::pair<at::Tensor, at::Tensor> KVCache::append(int64_t layer, const at::Tensor& k,
                                                  const at::Tensor& v) {
  const int64_t t = k.size(2);
  TORCH_CHECK(length_ + t <= capacity_, "expected at most ", capacity_, " tokens in the cache, got ",
              length_ + t, "; make it larger or generate fewer tokens");
  keys_[layer].narrow(2, length_, t).copy_(k);
  values_[layer].narrow(2, length_, t).copy_(v);
  return {keys_[layer].narrow(2, 0, length_ + t), values_[layer].narrow(2, 0, length_ + t)};
}

}  // namespace narrowgauge::nn
