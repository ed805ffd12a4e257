#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <future>
#include <memory>

#include "checkpoint/durable_file.h"

namespace narrowgauge::checkpoint {

// A large DurableFile written from its first byte to its last, at the speed of the disk: bytes are
// collected in buffers that go past the page cache, two at a time, while the next one is filled.
//
// The last buffer, unless full, goes through the cache. Not thread-safe. A write that failed throws
// std::runtime_error from a later append() or from commit().
class StreamedFile {
 public:
  // Takes the room for `size` bytes, as DurableFile::reserve() does.
  StreamedFile(std::filesystem::path path, uint64_t size);

  // `data` may change when it returns.
  void append(const void* data, size_t size);

  // As DurableFile's, after all that was appended.
  void commit();

  static constexpr size_t kBufferBytes = size_t{4} << 20;

 private:
  struct FreePages {
    void operator()(char* pages) const;
  };
  struct Buffer {
    std::unique_ptr<char[], FreePages> bytes;
    std::future<void> writing;
  };

  DurableFile file_;
  // One is filled while two are written, so that the disk never waits for the next. Behind file_,
  // which their writes use.
  std::array<Buffer, 3> buffers_;
  size_t current_ = 0;   // the buffer that is filled
  size_t filled_ = 0;    // bytes in it
  uint64_t offset_ = 0;  // where it goes
};

}  // namespace narrowgauge::checkpoint
