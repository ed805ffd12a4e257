#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/flight_record.h"

namespace narrowgauge::comm {

// What one rank says of itself.
struct RankReport {
  std::vector<GroupProgress> groups;
  std::string waits_in;  // its oldest pending collective, in words; empty when there is none
};

// What is known of a rank, also when it says nothing any more.
struct RankState {
  int rank = 0;
  bool known = false;         // has reported at least once
  double silent_seconds = 0;  // since its last report
  RankReport report;
};

// Why the job cannot go on.
struct Alarm {
  std::string cause;
  int teller = -1;  // the rank that tells the user and ends the job; -1: nobody yet
};

// Who tells the user of a failure.
enum class Teller { kThisRank, kAnotherRank, kUnknown };

// Where ranks tell each other how far they are, beside the communicator that may be stuck.
// No call blocks for more than a second, whatever state the other ranks are in.
class RankBoard {
 public:
  virtual ~RankBoard() = default;

  // Tells how far this rank is; returns the job's first alarm, if there is one.
  virtual std::optional<Alarm> post(const RankReport& report) = 0;

  // Every rank as last heard of, in rank order.
  virtual std::vector<RankState> read() = 0;

  // Raises the alarm for everybody, in this rank's name. Returns whether this rank is the first who
  // did, and so the one to tell; unknown where the board cannot be reached. Safe from any thread.
  virtual Teller raise(const std::string& cause) = 0;
};

}  // namespace narrowgauge::comm
