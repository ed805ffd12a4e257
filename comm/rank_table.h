#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/rank_board.h"

namespace narrowgauge::comm {

// What all ranks have reported, in one place. Safe from any thread.
class RankTable {
 public:
  explicit RankTable(int size);

  void report(int rank, const RankReport& report);
  std::vector<RankState> read() const;

  // The first alarm stays; one without a teller gives way to one with.
  void raise(const Alarm& alarm);
  std::optional<Alarm> alarm() const;

 private:
  mutable std::mutex mutex_;
  std::vector<RankState> ranks_;
  std::vector<std::chrono::steady_clock::time_point> heard_;
  std::optional<Alarm> alarm_;
};

// The board of a rank that is a thread: the table itself.
class ThreadRankBoard final : public RankBoard {
 public:
  ThreadRankBoard(std::shared_ptr<RankTable> table, int rank);

  std::optional<Alarm> post(const RankReport& report) override;
  std::vector<RankState> read() override { return table_->read(); }
  Teller raise(const std::string& cause) override;

 private:
  std::shared_ptr<RankTable> table_;
  int rank_;
};

}  // namespace narrowgauge::comm
