#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "fsdp/comm_streams.h"

// The two collectives of a group, each in two halves: one starts it on a stream, one waits for it.
// Buffers are allocated and freed by the caller, outside the streams, and outlive the wait: so they
// need no bookkeeping of the streams that use them, and how much memory lives when is
// deterministic.

namespace narrowgauge::fsdp {

// The rows of dim 0 that a rank holds: torch.chunk's ceil-sized chunks, the last ones short or
// empty (10 rows on 4 ranks: 3, 3, 3, 1; 5 rows: 2, 2, 1, 0).
struct RowRange {
  int64_t begin = 0;
  int64_t size = 0;
};
int64_t padded_rows(int64_t rows, int64_t num_shards);
RowRange row_range(int64_t rows, int64_t num_shards, int64_t shard);

// One tensor to gather: cast to `dtype` on the way in; on the compute device or on the CPU.
struct AllGatherInput {
  at::Tensor tensor;
  at::ScalarType dtype;
};

// An all-gather under way.
struct AllGatherResult {
  std::vector<AllGatherInput> inputs;
  std::vector<int64_t> offsets;  // of each tensor in a rank's slice, in bytes; then the end
  at::Tensor gathered;           // [size, bytes of a slice]
  std::shared_ptr<comm::Work> work;
};

// Starts to gather many tensors with one all_gather of bytes, so dtypes may differ. Inputs must not
// change until the work is done. No collective when there is no input.
AllGatherResult foreach_all_gather(std::vector<AllGatherInput> inputs, at::Device device,
                                   const std::shared_ptr<comm::Communicator>& shard_axis,
                                   const CommStreams& streams);

// REQUIRES: result.work has been waited for. outputs[i]: [size * n_i], out, contiguous, in the
// input's dtype; the ranks' inputs in rank order.
void foreach_all_gather_copy_out(const AllGatherResult& result,
                                 const std::vector<at::Tensor>& outputs);

struct ReduceSpec {
  at::ScalarType dtype;  // of the buffers and of the sum
  double divide_factor = 1.0;
  // False: sums over the shard axis alone.
  bool all_reduce = true;
  at::Device device = at::kCPU;
  // The result goes to the CPU, into page-locked memory if that says so.
  bool offload_to_cpu = false;
  bool pin_memory = false;
};

// A reduction under way.
struct ReduceResult {
  at::Tensor input;                            // [size, elements of a slice]
  std::shared_ptr<comm::Work> reduce_scatter;  // after it, `input` may be freed
  at::Tensor device_output;                    // [elements of a slice]
  std::shared_ptr<comm::Work> work;            // after it, `output` is there
  at::Tensor output;  // device_output or, offloaded, its copy: then a device other than the CPU
                      // must be synchronised with before the CPU reads it
};

// Starts to sum many gradients over all ranks with one reduce_scatter (when the shard axis has
// ranks) and one all_reduce (when the replicate axis has and spec.all_reduce). gradients[i]: this
// rank's gradient of sizes[i], any floating dtype; undefined counts as zeros. Consumed: each is
// dropped once copied. partial: undefined, or an earlier `output` of spec.all_reduce == false for
// the same sizes, which is added.
ReduceResult foreach_reduce(std::vector<at::Tensor> gradients,
                            const std::vector<std::vector<int64_t>>& sizes, const ReduceSpec& spec,
                            const std::shared_ptr<comm::Communicator>& shard_axis,
                            const std::shared_ptr<comm::Communicator>& replicate_axis,
                            const at::Tensor& partial, const CommStreams& streams);

// For each of `sizes`, this rank's rows (maybe 0): views of one `output`.
std::vector<at::Tensor> sharded_gradients(const at::Tensor& output,
                                          const std::vector<std::vector<int64_t>>& sizes,
                                          int64_t num_shards, int64_t shard);

}  // namespace narrowgauge::fsdp
