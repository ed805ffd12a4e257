#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <stdexcept>

namespace narrowgauge::comm {

// kAvg divides the sum by the number of ranks once, after summing. kMax propagates NaN.
enum class ReduceOp { kSum, kAvg, kMax };

// A fixed set of ranks that exchange tensors.
//
// Order: every rank of a communicator calls the same methods in the same order with equal element
// counts and dtypes. Thread safety: one thread at a time uses a communicator; different ranks are
// different objects. On the CPU a call returns when the caller may reuse its tensors; on a CUDA
// device it is enqueued on the current stream and asynchronous to the host.
//
// Tensors are dense, contiguous and on the communicator's device; their shapes do not matter, only
// numel() does. Gathers and broadcasts move bytes, so any dtype travels (bf16 and fp8 included).
// Reductions take float64, float32, bfloat16, float16, int64 and int32. On the CPU 16-bit floats
// are summed in fp32 and rounded once, and element i is always computed over the ranks in rank
// order, so results depend neither on timing nor on the implementation, bit for bit; NCCL has an
// order and roundings of its own.
//
// A wrong argument throws c10::Error on the rank that passed it. A failure of another rank is
// reported as the implementation says: CommunicatorAborted (threads, NCCL) or the end of the job
// (MPI; watched or not).
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // output: [size * input.numel()], out; the inputs in rank order. `input` may be this rank's slice
  // of `output` (gather in place, nothing is copied locally); any other overlap is an error.
  virtual void all_gather(const at::Tensor& output, const at::Tensor& input) = 0;

  // input: [size * output.numel()], slice k goes to rank k. output: out, must not overlap input.
  virtual void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp op) = 0;

  // tensor: in and out.
  virtual void all_reduce(const at::Tensor& tensor, ReduceOp op) = 0;

  // tensor: in on `root`, out elsewhere.
  virtual void broadcast(const at::Tensor& tensor, int root) = 0;

  // The communicator of all ranks that passed the same `color` (>= 0), ranked by (key, rank here).
  virtual std::shared_ptr<Communicator> split(int color, int key) = 0;
};

// Thrown out of a collective on the ranks that waited for one that failed; what() carries the first
// cause, which is also thrown, as it was, on the rank that failed.
class CommunicatorAborted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Returns when every rank has called it. REQUIRES: a communicator of the CPU.
void barrier(Communicator& communicator);

}  // namespace narrowgauge::comm
