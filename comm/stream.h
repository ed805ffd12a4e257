#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace narrowgauge::comm {

// A piece of work that was handed to a Stream.
class Work {
 public:
  virtual ~Work() = default;

  // What the caller does next happens after this piece: on the CPU the thread blocks until it has
  // run, on CUDA the current stream waits. Rethrows what the piece threw. May be called again, and
  // from any thread.
  virtual void wait() = 0;
};

// Runs pieces of work one after another, in the order given, beside the caller.
//
// A piece starts after all the caller has enqueued so far. The tensors it uses stay alive until its
// wait() has returned: whoever hands it over holds them. A piece that throws does not stop the next
// ones; its exception is told by wait() alone.
class Stream {
 public:
  virtual ~Stream() = default;

  // `work` is destroyed before wait() returns. One thread at a time calls this.
  virtual std::shared_ptr<Work> run(std::function<void()> work) = 0;
};

// Runs each piece in the caller, before run returns.
class InlineStream final : public Stream {
 public:
  std::shared_ptr<Work> run(std::function<void()> work) override;
};

// A thread of its own: collectives and copies go on while the caller computes. They run without
// autograd and with one OpenMP thread, to leave the processors to the computation.
class ThreadStream final : public Stream {
 public:
  ThreadStream();
  // Finishes what was handed over.
  ~ThreadStream() override;
  ThreadStream(const ThreadStream&) = delete;
  ThreadStream& operator=(const ThreadStream&) = delete;

  std::shared_ptr<Work> run(std::function<void()> work) override;

 private:
  class Piece;

  void run_pieces();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Piece>> pieces_;  // guarded by mutex_, as is ending_
  bool ending_ = false;
  std::thread thread_;  // last: it uses the members above
};

}  // namespace narrowgauge::comm
