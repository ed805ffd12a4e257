#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "comm/stream.h"

namespace narrowgauge::comm {

// How much time pieces of work took, and how much of it their callers stood still for: the rest was
// hidden behind what the callers did meanwhile.
struct StreamTime {
  double running_seconds = 0;  // from the start to the end of each piece, other ranks' lateness too
  double waited_seconds = 0;   // inside Work::wait
};

// Hands pieces of work to another stream and measures. For streams of the CPU: on a device, neither
// running nor waiting takes the host's time.
class MeteredStream final : public Stream {
 public:
  explicit MeteredStream(std::shared_ptr<Stream> inner) : inner_(std::move(inner)) {}

  std::shared_ptr<Work> run(std::function<void()> work) override;

  // Since this object was made. Pieces under way are not in it.
  StreamTime time() const;

 private:
  // Outlives the stream where a Work does.
  struct Nanoseconds {
    std::atomic<int64_t> running{0};
    std::atomic<int64_t> waited{0};
  };
  class MeteredWork;

  std::shared_ptr<Stream> inner_;
  std::shared_ptr<Nanoseconds> total_ = std::make_shared<Nanoseconds>();
};

}  // namespace narrowgauge::comm
