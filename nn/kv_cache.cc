#include "nn/kv_cache.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

namespace narrowgauge::nn {

std::pair<at::Tensor, at::Tensor> KVCache::append(int64_t layer, const at::Tensor& k,
                                                  const at::Tensor& v) {
  const int64_t t = k.size(2);
  TORCH_CHECK(length_ + t <= capacity_, "expected at most ", capacity_,
              " tokens in the cache, got ", length_ + t,
              "; make it larger or generate fewer tokens");
  if (!keys_[layer].defined()) {
    const std::vector<int64_t> sizes = {k.size(0), k.size(1), capacity_, k.size(3)};
    keys_[layer] = at::empty(sizes, k.options().requires_grad(false));
    values_[layer] = at::empty(sizes, k.options().requires_grad(false));
  }
  keys_[layer].narrow(2, length_, t).copy_(k);
  values_[layer].narrow(2, length_, t).copy_(v);
  return {keys_[layer].narrow(2, 0, length_ + t), values_[layer].narrow(2, 0, length_ + t)};
}

}  // namespace narrowgauge::nn
