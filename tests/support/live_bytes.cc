#include "tests/support/live_bytes.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>

namespace narrowgauge::testing {
namespace {

class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t size_bytes) override {
    if (size_bytes == 0) {
      return {nullptr, nullptr, &free_block, c10::Device(c10::kCPU)};
    }
    auto* header = static_cast<Header*>(inner_->raw_allocate(sizeof(Header) + size_bytes));
    *header = {this, static_cast<int64_t>(size_bytes)};
    add(header->size_bytes);
    // Data and context are one address: at::raw_allocate asks for that.
    return {header + 1, header + 1, &free_block, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* to, const void* from, size_t size_bytes) const override {
    default_copy_data(to, from, size_bytes);
  }

  std::atomic<int64_t> live{0};
  std::atomic<int64_t> peak{0};

 private:
  // Stands before each block and keeps its alignment.
  struct alignas(64) Header {
    CountingAllocator* owner;
    int64_t size_bytes;
  };

  static void free_block(void* data) {
    if (data == nullptr) {
      return;
    }
    Header* header = static_cast<Header*>(data) - 1;
    header->owner->live -= header->size_bytes;
    header->owner->inner_->raw_deallocate(header);
  }

  void add(int64_t size_bytes) {
    const int64_t now = live += size_bytes;
    int64_t most = peak;
    while (now > most && !peak.compare_exchange_weak(most, now)) {
    }
  }

  c10::Allocator* inner_;
};

// Outlives every tensor, hence never destroyed.
CountingAllocator& allocator() {
  static CountingAllocator& installed = [&]() -> CountingAllocator& {
    auto* counting = new CountingAllocator(c10::GetAllocator(c10::kCPU));
    c10::SetAllocator(c10::kCPU, counting, /*priority=*/100);
    return *counting;
  }();
  return installed;
}

}  // namespace

int64_t live_bytes() { return allocator().live; }

int64_t peak_bytes() { return allocator().peak; }

void reset_peak_bytes() { allocator().peak = allocator().live.load(); }

}  // namespace narrowgauge::testing
