#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <functional>
#include <memory>

#include "comm/stream.h"

namespace narrowgauge::comm {

// A CUDA stream of its own, of high priority: its pieces are enqueued by the caller, in run, and go
// on beside the kernels of the caller's stream. wait() makes the stream that is current then wait
// for the piece; the host never blocks.
//
// A tensor that a piece reads or writes lives until its wait(), as Stream says; then libtorch's
// allocator needs no recordStream, since whatever reuses its memory comes after the wait.
class CudaStream final : public Stream {
 public:
  // Throws c10::Error when `device` is no CUDA device or libtorch's CUDA half is not loaded.
  explicit CudaStream(c10::Device device);

  std::shared_ptr<Work> run(std::function<void()> work) override;

 private:
  c10::Stream stream_;
};

}  // namespace narrowgauge::comm
