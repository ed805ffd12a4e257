#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>
#include <memory>

namespace narrowgauge::fsdp {

// Bytes of tensors on the CPU that one thread has allocated and that live, whoever frees them.
class LiveBytes {
 public:
  LiveBytes();
  // From now on this thread's allocations count here.
  void count_this_thread();
  int64_t now() const;
  int64_t peak() const;
  void reset_peak();

  struct Counter;

 private:
  std::shared_ptr<Counter> counter_;
};

// Makes torch count; without it the numbers above stay 0. Once in a process, before any thread.
void install_counting_allocator();

}  // namespace narrowgauge::fsdp
