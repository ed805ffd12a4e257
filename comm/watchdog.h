#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/flight_record.h"
#include "comm/rank_board.h"

namespace narrowgauge::comm {

struct WatchdogOptions {
  // How long a collective may take, the slowest rank's lateness included.
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
  // Where rank-N.json is written on failure; empty: nowhere.
  std::filesystem::path record_directory;
  // How many collectives the flight record keeps.
  size_t record_capacity = FlightRecord::kDefaultCapacity;
};

// Watches one rank's collectives from a thread of its own, and with the help of the board also the
// other ranks. It calls `on_failure` at most once, from its thread, with a sentence that says which
// rank or collective is to blame: when a collective is past its timeout, when a rank has died, and
// when a probe complains. Of the ranks that find a failure the first one tells it; the others call
// `on_failure` only if the job has not ended 5 s later. It looks every half second, more often for
// timeouts of less than 5 s.
//
// Every rank that learns of a failure writes its flight record, and whoever tells it leaves the
// others a look's time for that.
//
// A process that was stopped (SIGSTOP, a suspended job) and runs again gives its collectives their
// whole timeout anew and keeps quiet for 5 s: what it finds then is what its own absence did, and
// the others may be about to end the job.
class Watchdog {
 public:
  using OnFailure = std::function<void(const std::string& cause, Teller teller)>;

  Watchdog(int rank, int size, WatchdogOptions options, std::shared_ptr<FlightRecord> record,
           std::shared_ptr<RankBoard> board, OnFailure on_failure);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // The timeout from now on, for collectives under way, too. Safe from any thread.
  void set_timeout(std::chrono::milliseconds timeout) { timeout_ = timeout; }

  // Asked at every look; a text is a failure. What it uses lives until remove_probe has returned.
  int add_probe(std::function<std::optional<std::string>()> probe);
  void remove_probe(int id);

  // This rank failed and its owner ends the job: writes the flight record and tells the other
  // ranks. Returns who tells the user. `on_failure` is not called any more. Safe from any thread.
  Teller fail(const std::string& cause);

 private:
  void watch();
  std::chrono::milliseconds pause() const;
  // Whether this process was stopped and has run again for less than 5 s.
  bool has_just_resumed() const;
  // Writes the record and raises the alarm.
  Teller announce(const std::string& cause, const std::string& alarm);
  // What is wrong, if something is.
  std::optional<std::string> look();
  std::optional<std::string> probes_complaint();
  std::string blame(const Collective& late);
  void write_record(const std::string& reason);

  const int rank_;
  const int size_;
  const std::filesystem::path record_directory_;
  std::atomic<std::chrono::milliseconds> timeout_;
  const std::shared_ptr<FlightRecord> record_;
  const std::shared_ptr<RankBoard> board_;
  const OnFailure on_failure_;
  std::optional<std::chrono::steady_clock::time_point> told_;  // when another rank began to tell
  // When the thread last began to look, and when it last did so after a gap.
  std::atomic<std::chrono::steady_clock::time_point> looked_;
  std::atomic<std::chrono::steady_clock::time_point> resumed_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;  // guarded by mutex_
  bool failed_ = false;  // guarded by mutex_
  std::mutex probes_mutex_;
  std::map<int, std::function<std::optional<std::string>()>> probes_;
  int next_probe_ = 0;
  std::thread thread_;  // last: it uses the members above
};

// "; not arrived: rank 2 (at #36 all_gather, silent for 9.8 s)", and what else the ranks' states
// say about the collective that `mine` has entered last.
std::string describe_absentees(const GroupProgress& mine, const std::vector<RankState>& ranks);

}  // namespace narrowgauge::comm
