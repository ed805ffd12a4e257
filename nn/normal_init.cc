#include "nn/normal_init.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include "nn/kernels/normal_init.h"
#include "vectorize/philox.h"

namespace narrowgauge::nn {
namespace {

constexpr int64_t kGrain = 1 << 15;

template <typename T>
void fill(T* out, int64_t count, int64_t first, kernels::NormalStream stream, float mean,
          float std) {
  at::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    kernels::fill_normal(out + begin, first + begin, end - begin, stream, mean, std);
  });
}

}  // namespace

void fill_normal(const at::Tensor& shard, uint64_t seed, const std::string& fqn,
                 int64_t first_element, double mean, double std) {
  TORCH_CHECK(shard.is_cpu() && shard.is_contiguous(), "expected a contiguous CPU tensor for ", fqn,
              ", got ", shard.toString(), " with sizes ", shard.sizes(), " and strides ",
              shard.strides());
  TORCH_CHECK(first_element >= 0, "expected first_element >= 0 for ", fqn, ", got ", first_element);
  const kernels::NormalStream stream{vectorize::stream_key(fqn), seed};
  const auto narrow_mean = static_cast<float>(mean);
  const auto narrow_std = static_cast<float>(std);
  if (shard.scalar_type() == at::kFloat) {
    fill(shard.mutable_data_ptr<float>(), shard.numel(), first_element, stream, narrow_mean,
         narrow_std);
    return;
  }
  TORCH_CHECK(shard.scalar_type() == at::kBFloat16, "expected fp32 or bf16 for ", fqn, ", got ",
              shard.scalar_type());
  fill(static_cast<uint16_t*>(shard.mutable_data_ptr()), shard.numel(), first_element, stream,
       narrow_mean, narrow_std);
}

}  // namespace narrowgauge::nn
