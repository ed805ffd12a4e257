#include "comm/metered_stream.h"

#include <chrono>
#include <utility>

namespace narrowgauge::comm {
namespace {

// Adds the time it lives.
class Stopwatch {
 public:
  explicit Stopwatch(std::atomic<int64_t>& total) : total_(total) {}
  ~Stopwatch() {
    total_ += std::chrono::duration_cast<std::chrono::nanoseconds>(
                  std::chrono::steady_clock::now() - started_)
                  .count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  std::atomic<int64_t>& total_;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

}  // namespace

class MeteredStream::MeteredWork final : public Work {
 public:
  MeteredWork(std::shared_ptr<Work> inner, std::shared_ptr<Nanoseconds> total)
      : inner_(std::move(inner)), total_(std::move(total)) {}

  void wait() override {
    const Stopwatch stopwatch(total_->waited);
    inner_->wait();
  }

 private:
  std::shared_ptr<Work> inner_;
  std::shared_ptr<Nanoseconds> total_;
};

std::shared_ptr<Work> MeteredStream::run(std::function<void()> work) {
  auto inner = inner_->run([work = std::move(work), total = total_] {
    const Stopwatch stopwatch(total->running);
    work();
  });
  return std::make_shared<MeteredWork>(std::move(inner), total_);
}

StreamTime MeteredStream::time() const {
  constexpr double kNano = 1e-9;
  return {kNano * static_cast<double>(total_->running),
          kNano * static_cast<double>(total_->waited)};
}

}  // namespace narrowgauge::comm
