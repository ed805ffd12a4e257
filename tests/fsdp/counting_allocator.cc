#include "tests/fsdp/counting_allocator.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace narrowgauge::fsdp {

struct LiveBytes::Counter {
  std::atomic<int64_t> now{0};
  std::atomic<int64_t> peak{0};

  void add(int64_t size_bytes) {
    const int64_t live = now += size_bytes;
    int64_t highest = peak.load();
    while (live > highest && !peak.compare_exchange_weak(highest, live)) {
    }
  }
};

namespace {

thread_local std::shared_ptr<LiveBytes::Counter> counter_of_thread;

struct Block {
  c10::DataPtr data;
  int64_t size_bytes;
  std::shared_ptr<LiveBytes::Counter> counter;  // may be null
};

void release(void* context) {
  const std::unique_ptr<Block> block(static_cast<Block*>(context));
  if (block->counter) {
    block->counter->now -= block->size_bytes;
  }
}

class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t size_bytes) override {
    auto block = std::make_unique<Block>(
        Block{inner_->allocate(size_bytes), static_cast<int64_t>(size_bytes), counter_of_thread});
    if (block->counter) {
      block->counter->add(block->size_bytes);
    }
    void* data = block->data.get();
    return {data, block.release(), &release, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }

 private:
  c10::Allocator* inner_;
};

}  // namespace

LiveBytes::LiveBytes() : counter_(std::make_shared<Counter>()) {}
void LiveBytes::count_this_thread() { counter_of_thread = counter_; }
int64_t LiveBytes::now() const { return counter_->now; }
int64_t LiveBytes::peak() const { return counter_->peak; }
void LiveBytes::reset_peak() { counter_->peak = counter_->now.load(); }

void install_counting_allocator() {
  static CountingAllocator allocator(c10::GetCPUAllocator());
  c10::SetCPUAllocator(&allocator, /*priority=*/100);
}

}  // namespace narrowgauge::fsdp
