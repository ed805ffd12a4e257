#include "nn/initialize.h"

#include <ATen/ops/empty_like.h>

#include <cmath>
#include <string_view>

#include "nn/normal_init.h"

namespace narrowgauge::nn {

void initialize_parameter(const TransformerConfig& config, uint64_t seed, const std::string& fqn,
                          const at::Tensor& shard, int64_t row_begin) {
  const std::string_view name = fqn;
  if (name.ends_with("bias")) {
    shard.zero_();
  } else if (name.ends_with("norm.weight")) {
    shard.fill_(1.0);
  } else {
    const bool writes_residual =
        name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
    const double depth_scale = writes_residual ? 1.0 / std::sqrt(2.0 * config.num_layers) : 1.0;
    const int64_t row_size = shard.dim() > 1 ? shard.stride(0) : 1;
    // Always made on the CPU, so that the values do not depend on the device.
    const at::Tensor values = shard.is_cpu() ? shard : at::empty_like(shard, at::kCPU);
    fill_normal(values, seed, fqn, row_begin * row_size, 0.0,
                config.initializer_range * depth_scale);
    if (!shard.is_cpu()) {
      shard.copy_(values);
    }
  }
}

}  // namespace narrowgauge::nn
