// Everything goes through c10's device-generic classes, whose CUDA half registers itself when it is
// loaded: no CUDA library is linked here.

#include "comm/cuda_stream.h"

#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <exception>
#include <utility>

namespace narrowgauge::comm {
namespace {

c10::Stream current_stream(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

c10::Stream new_stream(c10::Device device) {
  TORCH_CHECK(device.is_cuda(), "CudaStream: expected a CUDA device, got ", device);
  TORCH_CHECK(c10::impl::hasDeviceGuardImpl(device.type()),
              "CudaStream: expected libtorch's CUDA half to be loaded, got a process without it; "
              "select the device first");
  return c10::impl::VirtualGuardImpl(device.type())
      .getStreamFromGlobalPool(device, /*isHighPriority=*/true);
}

class CudaWork final : public Work {
 public:
  CudaWork(c10::Event done, c10::Device device, std::exception_ptr error)
      : done_(std::move(done)), device_(device), error_(std::move(error)) {}

  void wait() override {
    done_.block(current_stream(device_));
    if (error_ != nullptr) {
      std::rethrow_exception(error_);
    }
  }

 private:
  c10::Event done_;
  c10::Device device_;
  std::exception_ptr error_;
};

}  // namespace

CudaStream::CudaStream(c10::Device device) : stream_(new_stream(device)) {}

std::shared_ptr<Work> CudaStream::run(std::function<void()> work) {
  c10::Event enqueued(stream_.device_type());
  enqueued.record(current_stream(stream_.device()));
  enqueued.block(stream_);
  std::exception_ptr error;
  try {
    const c10::StreamGuard on_stream(stream_);
    const c10::AutoGradMode no_grad(false);
    work();
  } catch (...) {
    error = std::current_exception();
  }
  work = nullptr;
  c10::Event done(stream_.device_type());
  done.record(stream_);
  return std::make_shared<CudaWork>(std::move(done), stream_.device(), std::move(error));
}

}  // namespace narrowgauge::comm
