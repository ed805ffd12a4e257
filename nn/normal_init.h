#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace narrowgauge::nn {

// Fills `shard` with normal values that belong to positions of the full parameter: the value at
// flat index i of parameter `fqn` is a pure function of (seed, fqn, i). A shard therefore equals
// the slice of the full parameter, whatever the world size, the number of threads or the
// instruction set.
// shard: contiguous fp32 or bf16 on the CPU, written in place without autograd; its first element
// has flat index first_element >= 0. bf16 is the fp32 value rounded.
//
// Philox4x32-10 (Salmon et al. 2011) with a key hashed from fqn and the counter (i / 4, seed), then
// Box-Muller in fp32. The smallest uniform variate is 2^-33, so |value - mean| <= 6.77 std.
void fill_normal(const at::Tensor& shard, uint64_t seed, const std::string& fqn,
                 int64_t first_element, double mean, double std);

}  // namespace narrowgauge::nn
