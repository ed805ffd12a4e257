#include "memory/tensor_arena.h"

#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <limits>
#include <new>
#include <optional>

namespace narrowgauge::memory {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSmallestArena = size_t{64} << 20;

char* reserve_addresses(size_t& capacity) {
  for (; capacity >= kSmallestArena; capacity /= 2) {
    void* base = ::mmap(nullptr, capacity, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base != MAP_FAILED) {
      return static_cast<char*>(base);
    }
  }
  capacity = 0;
  return nullptr;
}

}  // namespace

// In front of a tensor's bytes.
struct alignas(kAlignment) TensorArena::Header {
  TensorArena* arena;
  size_t size;  // of the block, with this; 0: it is the fallback's
};

TensorArena::TensorArena(size_t capacity, c10::Allocator& fallback)
    : fallback_(fallback),
      base_(reserve_addresses(capacity)),
      capacity_(capacity),
      ranges_(capacity) {}

TensorArena::~TensorArena() {
  if (base_ != nullptr) {
    ::munmap(base_, capacity_);
  }
}

TensorArena::Header* TensorArena::take(size_t size) {
  if (size < kSmallestBytes || size > capacity_) {
    return nullptr;
  }
  const size_t block = (sizeof(Header) + size + kAlignment - 1) / kAlignment * kAlignment;
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::optional<uint64_t> offset = ranges_.take(block);
  return offset ? new (base_ + *offset) Header{this, block} : nullptr;
}

c10::DataPtr TensorArena::allocate(size_t size) {
  if (size == 0) {
    return {nullptr, nullptr, &TensorArena::free_tensor, at::Device(at::kCPU)};
  }
  Header* header = take(size);
  if (header == nullptr) {
    TORCH_CHECK(size <= std::numeric_limits<size_t>::max() - sizeof(Header),
                "expected a tensor that fits into memory, got ", size, " bytes");
    header = new (fallback_.raw_allocate(sizeof(Header) + size)) Header{this, 0};
  }
  void* data = header + 1;
  return {data, data, &TensorArena::free_tensor, at::Device(at::kCPU)};
}

void TensorArena::free_tensor(void* data) {
  if (data == nullptr) {
    return;
  }
  Header* header = static_cast<Header*>(data) - 1;
  TensorArena& arena = *header->arena;
  const size_t size = header->size;
  if (size == 0) {
    arena.fallback_.raw_deallocate(header);
    return;
  }
  const auto offset = static_cast<uint64_t>(reinterpret_cast<const char*>(header) - arena.base_);
  const std::lock_guard<std::mutex> lock(arena.mutex_);
  arena.ranges_.give_back(offset, size);
}

void TensorArena::copy_data(void* target, const void* source, size_t size) const {
  default_copy_data(target, source, size);
}

}  // namespace narrowgauge::memory
