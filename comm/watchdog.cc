#include "comm/watchdog.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <utility>

namespace narrowgauge::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// How long the rank that failed has to end the job itself.
constexpr std::chrono::seconds kGrace{5};
// Without a report for so long, a rank is stopped, or its host is.
constexpr double kSilentSeconds = 1.5;
// From one look to the next, of a process that was not stopped: a look's pause, a board that does
// not answer, a host that is busy.
constexpr std::chrono::seconds kLongestLook{3};

std::string in_seconds(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f s", seconds);
  return text.data();
}

const GroupProgress* progress_in(const std::string& group_id, const RankState& state) {
  for (const GroupProgress& group : state.report.groups) {
    if (group.id == group_id) {
      return &group;
    }
  }
  return nullptr;
}

bool is_silent(const RankState& state) { return state.silent_seconds > kSilentSeconds; }

std::string silence_of(const RankState& state) {
  return "silent for " + in_seconds(state.silent_seconds) + ": stopped?";
}

// "rank 2 (at #36 all_gather)", "rank 2 (last heard at #36 all_gather, silent for 9.8 s:
// stopped?)". group: how far it is in the group in question; nullptr when it has not reported that.
std::string describe(const RankState& state, const GroupProgress* group) {
  std::string where = "in no collective of this group";
  if (!state.report.waits_in.empty()) {
    where = "in " + state.report.waits_in;
  } else if (group != nullptr && group->started > 0) {
    where = "at #" + std::to_string(group->started) + " " + group->operation;
  }
  return "rank " + std::to_string(state.rank) + " (" +
         (is_silent(state) ? "last heard " + where + ", " + silence_of(state) : where) + ")";
}

void append(std::string& list, const std::string& item) {
  list += (list.empty() ? "" : ", ") + item;
}

}  // namespace

std::string describe_absentees(const GroupProgress& mine, const std::vector<RankState>& ranks) {
  if (is_silent(ranks[0])) {
    return "; rank 0 keeps the board and is " + silence_of(ranks[0]) +
           " Nothing newer is known of the others";
  }
  std::string absent;
  std::string different;
  std::string silent;
  std::string suspects;  // silent, and not known to be members
  int members = 0;
  for (const RankState& state : ranks) {
    const GroupProgress* theirs = progress_in(mine.id, state);
    if (theirs == nullptr) {
      // No report yet, so it may be a member; a group of all ranks has everybody.
      if (mine.size == static_cast<int>(ranks.size())) {
        append(absent, describe(state, nullptr));
        ++members;
      } else if (is_silent(state)) {
        append(suspects, describe(state, nullptr));
      }
      continue;
    }
    ++members;
    if (theirs->started < mine.started) {
      append(absent, describe(state, theirs));
    } else if (theirs->started == mine.started && theirs->operation != mine.operation) {
      append(different, "rank " + std::to_string(state.rank) + " (" + theirs->operation + ")");
    } else if (is_silent(state)) {
      append(silent, "rank " + std::to_string(state.rank) + " (" + silence_of(state) + ")");
    }
  }
  if (members < mine.size) {
    append(absent, std::to_string(mine.size - members) + " that have not reported this group yet" +
                       (suspects.empty() ? "" : ", maybe " + suspects));
  }
  std::string text;
  text += absent.empty() ? "" : "; not arrived: " + absent;
  text += different.empty() ? "" : "; called something else: " + different;
  text += silent.empty() ? "" : "; arrived, but silent since: " + silent;
  return text.empty() ? "; all ranks have arrived: the network or the device is stuck" : text;
}

Watchdog::Watchdog(int rank, int size, WatchdogOptions options,
                   std::shared_ptr<FlightRecord> record, std::shared_ptr<RankBoard> board,
                   OnFailure on_failure)
    : rank_(rank),
      size_(size),
      record_directory_(std::move(options.record_directory)),
      timeout_(options.timeout),
      record_(std::move(record)),
      board_(std::move(board)),
      on_failure_(std::move(on_failure)),
      looked_(Clock::now()),
      resumed_(Clock::time_point::min()),
      thread_([this] { watch(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_one();
  }
  thread_.join();
}

int Watchdog::add_probe(std::function<std::optional<std::string>()> probe) {
  const std::lock_guard lock(probes_mutex_);
  probes_[next_probe_] = std::move(probe);
  return next_probe_++;
}

void Watchdog::remove_probe(int id) {
  const std::lock_guard lock(probes_mutex_);
  probes_.erase(id);
}

milliseconds Watchdog::pause() const {
  return std::clamp(timeout_.load() / 10, milliseconds(10), milliseconds(500));
}

bool Watchdog::has_just_resumed() const {
  const Clock::time_point now = Clock::now();
  return now - looked_.load() > kLongestLook || now < resumed_.load() + kGrace;
}

Teller Watchdog::announce(const std::string& cause, const std::string& alarm) {
  write_record(cause);
  const Teller teller = board_->raise(alarm);
  if (teller == Teller::kThisRank && size_ > 1) {
    std::this_thread::sleep_for(pause() * 3 / 2);
  }
  return teller;
}

Teller Watchdog::fail(const std::string& cause) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(failed_, true)) {
      return Teller::kUnknown;
    }
  }
  const bool resumed = has_just_resumed();
  const Teller teller = announce(cause, "rank " + std::to_string(rank_) + " failed: " + cause);
  return resumed ? Teller::kAnotherRank : teller;
}

void Watchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!ending_ && !failed_) {
    lock.unlock();
    const Clock::time_point now = Clock::now();
    if (now - looked_.exchange(now) > kLongestLook) {
      resumed_ = now;
    }
    const std::optional<std::string> failure = look();
    lock.lock();
    if (failure && !ending_ && !failed_ && !has_just_resumed()) {
      lock.unlock();
      const Teller teller = told_ ? Teller::kUnknown : announce(*failure, *failure);
      lock.lock();
      if (teller == Teller::kAnotherRank) {
        told_ = Clock::now();
      } else if (!std::exchange(failed_, true)) {
        lock.unlock();
        return on_failure_(*failure, teller);
      }
    }
    changed_.wait_for(lock, pause(), [this] { return ending_; });
  }
}

std::optional<std::string> Watchdog::look() {
  try {
    record_->poll();
  } catch (const std::exception& error) {
    const std::string text = error.what();  // libtorch's goes on with a stack
    return "a device has failed: " + text.substr(0, text.find('\n'));
  }
  const std::optional<Collective> pending = record_->oldest_pending();
  const std::optional<Alarm> alarm =
      board_->post({record_->progress(), pending ? record_->describe(*pending) : ""});
  if (alarm && alarm->teller < 0) {
    return alarm->cause;
  }
  if (alarm) {
    if (!told_) {
      told_ = Clock::now();
      write_record(alarm->cause);
    }
    if (Clock::now() - *told_ < kGrace) {
      return std::nullopt;
    }
    return alarm->cause + "; rank " + std::to_string(alarm->teller) + " has not ended the job";
  }
  if (auto complaint = probes_complaint()) {
    return complaint;
  }
  if (pending && Clock::now() - std::max(pending->started, resumed_.load()) > timeout_.load()) {
    return blame(*pending);
  }
  return std::nullopt;
}

std::optional<std::string> Watchdog::probes_complaint() {
  const std::lock_guard lock(probes_mutex_);
  for (const auto& [id, probe] : probes_) {
    if (auto complaint = probe()) {
      return complaint;
    }
  }
  return std::nullopt;
}

std::string Watchdog::blame(const Collective& late) {
  std::string text =
      "collective timed out after " +
      in_seconds(std::chrono::duration<double>(Clock::now() - late.started).count()) + " (limit " +
      in_seconds(std::chrono::duration<double>(timeout_.load()).count()) +
      "): " + record_->describe(late);
  for (GroupProgress group : record_->progress()) {
    if (group.id == late.group_id) {
      // A device runs behind the host: what counts is who has entered the late one.
      group.started = late.sequence;
      group.operation = late.operation;
      text += describe_absentees(group, board_->read());
    }
  }
  return text;
}

void Watchdog::write_record(const std::string& reason) {
  if (record_directory_.empty()) {
    return;
  }
  try {
    record_->write(record_directory_, rank_, size_, reason);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());  // the failure itself is what counts
  }
}

}  // namespace narrowgauge::comm
