#include "comm/stream.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <omp.h>

#include <exception>
#include <utility>

namespace narrowgauge::comm {
namespace {

// Runs `work` and destroys it; returns what it threw.
std::exception_ptr outcome_of(std::function<void()>& work) {
  std::exception_ptr error;
  try {
    work();
  } catch (...) {
    error = std::current_exception();
  }
  work = nullptr;
  return error;
}

class FinishedWork final : public Work {
 public:
  explicit FinishedWork(std::exception_ptr error) : error_(std::move(error)) {}

  void wait() override {
    if (error_ != nullptr) {
      std::rethrow_exception(error_);
    }
  }

 private:
  std::exception_ptr error_;
};

}  // namespace

std::shared_ptr<Work> InlineStream::run(std::function<void()> work) {
  return std::make_shared<FinishedWork>(outcome_of(work));
}

class ThreadStream::Piece final : public Work {
 public:
  explicit Piece(std::function<void()> work) : work_(std::move(work)) {}

  void run() {
    std::exception_ptr error = outcome_of(work_);
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
    done_ = true;
    changed_.notify_all();
  }

  void wait() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
    if (error_ != nullptr) {
      std::rethrow_exception(error_);
    }
  }

 private:
  std::function<void()> work_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;  // guarded by mutex_, as is error_
  std::exception_ptr error_;
};

ThreadStream::ThreadStream() : thread_([this] { run_pieces(); }) {}

ThreadStream::~ThreadStream() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_one();
  }
  thread_.join();
}

std::shared_ptr<Work> ThreadStream::run(std::function<void()> work) {
  auto piece = std::make_shared<Piece>(std::move(work));
  const std::lock_guard lock(mutex_);
  pieces_.push_back(piece);
  changed_.notify_one();
  return piece;
}

void ThreadStream::run_pieces() {
  c10::GradMode::set_enabled(false);
  // The number of OpenMP threads belongs to the thread that opens the region. libtorch sets its own
  // default once a thread, at the first question; ours comes after.
  at::get_num_threads();
  omp_set_num_threads(1);
  while (true) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return ending_ || !pieces_.empty(); });
    if (pieces_.empty()) {
      return;
    }
    const std::shared_ptr<Piece> piece = std::move(pieces_.front());
    pieces_.pop_front();
    lock.unlock();
    piece->run();
  }
}

}  // namespace narrowgauge::comm
