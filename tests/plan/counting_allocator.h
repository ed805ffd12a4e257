#pragma once

#include <cstdint>

namespace narrowgauge::testing {

// From its construction to its end, every tensor allocation on the CPU is counted, from all
// threads; one object at a time. Tensors allocated meanwhile must not outlive it.
class CountingAllocator {
 public:
  CountingAllocator();
  ~CountingAllocator();
  CountingAllocator(const CountingAllocator&) = delete;
  CountingAllocator& operator=(const CountingAllocator&) = delete;

  int64_t live_bytes() const;
  int64_t peak_bytes() const;
  // The peak begins anew at what is live.
  void reset_peak();

 private:
  struct Counter;
  Counter* counter_;
};

}  // namespace narrowgauge::testing
