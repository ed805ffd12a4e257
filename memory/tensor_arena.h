#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>
#include <mutex>

#include "memory/best_fit.h"

namespace narrowgauge::memory {

// Memory of large tensors on the CPU, all from one range of addresses, best fit.
//
// A training step frees and takes tensors of the same sizes again. In the heap they lie between
// small blocks of all ages, and what falls between them is lost to the next step; here a freed
// range is whole again as soon as its neighbours are free (docs/LOG.md has both, counted). Pages
// are the process's from the first touch on, so a step takes none after the first. Tensors below
// kSmallestBytes, and those that do not fit, are the fallback's.
//
// Thread-safe. Must outlive its tensors.
class TensorArena final : public c10::Allocator {
 public:
  static constexpr size_t kSmallestBytes = size_t{64} << 10;

  // Reserves `capacity` bytes of addresses, which takes no memory; fewer, down to none, where the
  // system refuses so many. `fallback` must have a raw_deleter() and align to 64 bytes.
  TensorArena(size_t capacity, c10::Allocator& fallback);
  ~TensorArena() override;
  TensorArena(const TensorArena&) = delete;
  TensorArena& operator=(const TensorArena&) = delete;

  // Aligned to 64 bytes; nothing for no bytes. Throws c10::Error where the fallback has no more.
  c10::DataPtr allocate(size_t size) override;
  c10::DeleterFnPtr raw_deleter() const override { return &free_tensor; }  // oneDNN's scratch
  void copy_data(void* target, const void* source, size_t size) const override;

  size_t capacity() const { return capacity_; }

 private:
  struct Header;

  // A block of the arena's; none where it has none.
  Header* take(size_t size);
  static void free_tensor(void* data);

  c10::Allocator& fallback_;
  char* base_ = nullptr;
  size_t capacity_ = 0;
  std::mutex mutex_;
  BestFit ranges_;  // guarded by mutex_
};

}  // namespace narrowgauge::memory
