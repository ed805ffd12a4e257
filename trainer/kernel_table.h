#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace narrowgauge::trainer {

// Something that ran on a device: a kernel, a copy, a fill. Nanoseconds of one clock.
struct DeviceEvent {
  std::string name;
  std::string operation;  // that launched it, with its shapes; empty: not known
  int64_t begin = 0;
  int64_t end = 0;
  double flops = 0;  // of the operation where it is a matrix product, else 0
};

// A call of the device's runtime by the host.
struct RuntimeCall {
  std::string name;
  int64_t nanoseconds = 0;
};

// A text for people about what ran on one device: how much of the time it was busy; a line for each
// kernel, products apart by shape, with calls, time and TFLOP/s; where it stood still, and between
// which kernels; what the host called and how long that took.
std::string kernel_table(std::span<const DeviceEvent> events, std::span<const RuntimeCall> calls);

}  // namespace narrowgauge::trainer
