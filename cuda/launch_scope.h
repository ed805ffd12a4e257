#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "cuda/stream_handle.h"

namespace narrowgauge::cuda {

// Makes x's GPU the current one while it lives and knows libtorch's current stream there. Goes
// through c10's device-independent interface: libtorch's CUDA half is loaded at run time and must
// not be linked.
class LaunchScope {
 public:
  explicit LaunchScope(const at::Tensor& x)
      : guard_(x.device()), stream_(current_stream(x.device())) {}

  StreamHandle stream() const { return stream_; }

 private:
  static StreamHandle current_stream(c10::Device device) {
    const c10::impl::VirtualGuardImpl guard(device.type());
    return static_cast<StreamHandle>(guard.getStreamNativeHandle(guard.getStream(device)));
  }

  c10::DeviceGuard guard_;
  StreamHandle stream_;
};

}  // namespace narrowgauge::cuda
