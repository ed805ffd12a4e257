#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// float64, float32, bfloat16, float16, int64, int32.
bool is_reducible(c10::ScalarType dtype);

// The one place where ranks' numbers meet, so that all communicators agree bit for bit.
// output: [numel], out; may be one of the parts, but may not overlap them otherwise.
// parts: one [numel] array a rank, in rank order; reduced left to right, 16-bit floats in fp32 with
// one rounding at the end. Throws c10::Error on another dtype and on kAvg of integers.
void reduce_in_rank_order(void* output, const std::vector<const void*>& parts, int64_t numel,
                          c10::ScalarType dtype, ReduceOp op);

}  // namespace narrowgauge::comm
