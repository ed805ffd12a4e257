#pragma once

#include <mpi.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// Ranks are MPI processes. Blocking; tensors in host memory. An MPI error throws std::runtime_error
// with MPI's text; a process that dies ends the job through the launcher.
class MpiCommunicator final : public Communicator {
 public:
  // The most bytes one MPI call carries: MPI counts are int, so larger transfers go in pieces.
  // Tests pass a small limit.
  static constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;

  // Duplicates `parent`, so that its messages meet no other library's. Collective. REQUIRES: MPI is
  // initialised and outlives this object.
  explicit MpiCommunicator(MPI_Comm parent, int64_t max_message_bytes = kMaxMessageBytes);
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override;
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp op) override;
  void all_reduce(const at::Tensor& tensor, ReduceOp op) override;
  void broadcast(const at::Tensor& tensor, int root) override;
  std::shared_ptr<Communicator> split(int color, int key) override;

 private:
  // Returns when every rank has called it, and leaves the processor to others meanwhile.
  void arrive();

  // The slice of a buffer that a rank owns, in bytes. No slice is longer than rank 0's.
  struct Slice {
    int64_t begin = 0;
    int64_t size = 0;
  };
  using SliceOf = std::function<Slice(int rank)>;

  // Sums this rank's slice of everybody's `input` into `output` [slice size].
  void reduce_slices(const at::Tensor& input, const SliceOf& slice_of, void* output, ReduceOp op);
  // Sends this rank's slice of `data` to all and receives theirs.
  void share_slices(const at::Tensor& data, const SliceOf& slice_of);

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 0;
  int64_t max_message_bytes_;
  int exceptions_at_birth_;  // see the destructor
};

}  // namespace narrowgauge::comm
