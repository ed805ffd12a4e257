#include "tests/plan/counting_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace narrowgauge::testing {

// libtorch's raw_allocate wants data and context to be one pointer, so what a piece needs to know
// stands in front of it.
struct CountingAllocator::Counter final : c10::Allocator {
  struct Header {
    int64_t bytes;
    Counter* counter;
  };
  static constexpr size_t kAlignment = 64;
  static_assert(sizeof(Header) <= kAlignment);

  static void release(void* data) {
    if (data != nullptr) {
      void* base = static_cast<char*>(data) - kAlignment;
      const Header header = *static_cast<Header*>(base);
      header.counter->live -= header.bytes;
      std::free(base);
    }
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, nullptr, &release, at::kCPU};
    }
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* base = std::aligned_alloc(kAlignment, kAlignment + rounded);
    TORCH_CHECK(base != nullptr, "expected ", bytes, " bytes, got none");
    new (base) Header{static_cast<int64_t>(bytes), this};
    const int64_t now = live += static_cast<int64_t>(bytes);
    for (int64_t seen = peak; now > seen && !peak.compare_exchange_weak(seen, now);) {
    }
    void* data = static_cast<char*>(base) + kAlignment;
    return {data, data, &release, at::kCPU};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* destination, const void* source, size_t bytes) const override {
    default_copy_data(destination, source, bytes);
  }

  c10::Allocator* previous = c10::GetCPUAllocator();
  std::atomic<int64_t> live = 0;
  std::atomic<int64_t> peak = 0;
};

// Never freed: a tensor that libtorch caches may still point to it.
CountingAllocator::CountingAllocator() : counter_(new Counter) {
  c10::SetCPUAllocator(counter_, /*priority=*/1);
}

CountingAllocator::~CountingAllocator() {
  c10::SetCPUAllocator(counter_->previous, /*priority=*/1);
}

int64_t CountingAllocator::live_bytes() const { return counter_->live; }
int64_t CountingAllocator::peak_bytes() const { return counter_->peak; }
void CountingAllocator::reset_peak() { counter_->peak = counter_->live.load(); }

}  // namespace narrowgauge::testing
