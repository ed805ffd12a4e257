#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/nccl_library.h"

namespace narrowgauge::comm {

// Ranks are processes with a GPU each, on one or many hosts. Collectives are enqueued on the
// calling thread's current CUDA stream and are asynchronous to the host; tensors are on the
// communicator's device.
//
// Gathers and broadcasts move bytes. Sums are NCCL's: in an order that depends on its algorithm and
// with a rounding at each rank for 16-bit floats, so bits differ from the CPU's communicators. kMax
// propagates NaN, as everywhere. An error of NCCL throws std::runtime_error with its text.
class NcclCommunicator final : public Communicator {
 public:
  // The ranks of `bootstrap`, a communicator of the CPU that carries NCCL's id; collective over it.
  // Every rank passes a device of its own: NCCL refuses two ranks on one. Throws c10::Error when
  // `device` is no CUDA device, std::runtime_error when NCCL cannot be loaded.
  static std::shared_ptr<NcclCommunicator> create(Communicator& bootstrap, c10::Device device);

  // Waits for the other ranks' goodbye, 5 s at most; while an exception unwinds it aborts instead.
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override;
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp op) override;
  void all_reduce(const at::Tensor& tensor, ReduceOp op) override;
  void broadcast(const at::Tensor& tensor, int root) override;
  std::shared_ptr<Communicator> split(int color, int key) override;

  // What went wrong since, on this rank or another, here or in a communicator split from this one;
  // does not wait. Safe from any thread.
  std::optional<std::string> error();

  // Ends what is running on the device and what waits on the host; every later call throws
  // CommunicatorAborted(cause). Safe from any thread.
  void abort(const std::string& cause);

 private:
  NcclCommunicator(std::shared_ptr<const NcclLibrary> nccl, c10::Device device);

  // Makes one call to NCCL on this device and waits until it has been enqueued (the host's part;
  // connecting to peers takes a while the first time).
  template <typename Call>
  void enqueue(const char* name, const Call& call);
  void wait_until_enqueued(ncclResult_t result, const char* name);
  // Reads rank and size from NCCL.
  void finish_init();
  void check_usable() const;  // REQUIRES: mutex_ is held.
  std::string text_of(ncclResult_t result) const;

  const std::shared_ptr<const NcclLibrary> nccl_;
  const c10::Device device_;
  std::mutex mutex_;  // NCCL takes one call at a time
  ncclComm_t comm_ = nullptr;
  std::string abort_cause_;                             // set once, with mutex_ held
  std::vector<std::weak_ptr<NcclCommunicator>> parts_;  // split from this one; guarded by mutex_
  int rank_ = 0;
  int size_ = 1;
  int exceptions_at_birth_;
};

}  // namespace narrowgauge::comm
