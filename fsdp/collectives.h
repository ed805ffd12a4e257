#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "comm/communicator.h"

namespace narrowgauge::fsdp {

// The rows of dim 0 that a rank holds: torch.chunk's ceil-sized chunks, the last ones short or
// empty (10 rows on 4 ranks: 3, 3, 3, 1; 5 rows: 2, 2, 1, 0).
struct RowRange {
  int64_t begin = 0;
  int64_t size = 0;
};
int64_t padded_rows(int64_t rows, int64_t num_shards);
RowRange row_range(int64_t rows, int64_t num_shards, int64_t shard);

// Gathers many tensors with one all_gather of bytes, so dtypes may differ.
// inputs[i]: n_i elements, cast to outputs[i]'s dtype on the way in. outputs[i]: [size * n_i], out,
// contiguous; the ranks' inputs in rank order. No collective when there is no input.
void foreach_all_gather(const std::vector<at::Tensor>& inputs,
                        const std::vector<at::Tensor>& outputs, comm::Communicator& shard_axis);

// Sums many gradients over all ranks with one reduce_scatter (when the shard axis has ranks) and
// one all_reduce (when the replicate axis has). gradients[i]: this rank's gradient of sizes[i], any
// floating dtype; undefined counts as zeros. Consumed: each is dropped once copied. reduce_dtype:
// unset means the dtype of the first defined gradient. Returns for each the sum's rows of this rank
// (maybe 0), views of one buffer in reduce_dtype, divided by divide_factor.
std::vector<at::Tensor> foreach_reduce(std::vector<at::Tensor> gradients,
                                       const std::vector<std::vector<int64_t>>& sizes,
                                       std::optional<at::ScalarType> reduce_dtype,
                                       double divide_factor, comm::Communicator& shard_axis,
                                       comm::Communicator& replicate_axis);

}  // namespace narrowgauge::fsdp
