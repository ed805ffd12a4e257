#include "checkpoint/streamed_file.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace narrowgauge::checkpoint {

void StreamedFile::FreePages::operator()(char* pages) const { std::free(pages); }

StreamedFile::StreamedFile(std::filesystem::path path, uint64_t size) : file_(std::move(path)) {
  file_.reserve(size);
}

void StreamedFile::append(const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    Buffer& buffer = buffers_[current_];
    if (buffer.bytes == nullptr) {
      buffer.bytes.reset(
          static_cast<char*>(std::aligned_alloc(DurableFile::kPageBytes, kBufferBytes)));
      if (buffer.bytes == nullptr) {
        throw std::bad_alloc();
      }
    }
    if (buffer.writing.valid()) {
      buffer.writing.get();
    }
    const size_t count = std::min(size, kBufferBytes - filled_);
    std::memcpy(buffer.bytes.get() + filled_, bytes, count);
    bytes += count;
    size -= count;
    filled_ += count;
    if (filled_ == kBufferBytes) {
      // Deferred, that is, written by the get() above, where no thread can be started.
      buffer.writing = std::async(std::launch::async | std::launch::deferred,
                                  [this, pages = buffer.bytes.get(), offset = offset_] {
                                    file_.write_past_cache(offset, pages, kBufferBytes);
                                  });
      offset_ += kBufferBytes;
      filled_ = 0;
      current_ = (current_ + 1) % buffers_.size();
    }
  }
}

void StreamedFile::commit() {
  file_.write_at(offset_, buffers_[current_].bytes.get(), filled_);
  for (Buffer& buffer : buffers_) {
    if (buffer.writing.valid()) {
      buffer.writing.get();
    }
  }
  file_.commit();
}

}  // namespace narrowgauge::checkpoint
