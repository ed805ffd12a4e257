#include "comm/rank_table.h"

#include <utility>

namespace narrowgauge::comm {

using Clock = std::chrono::steady_clock;

RankTable::RankTable(int size) : ranks_(size), heard_(size, Clock::now()) {
  for (int rank = 0; rank < size; ++rank) {
    ranks_[rank].rank = rank;
  }
}

void RankTable::report(int rank, const RankReport& report) {
  const std::lock_guard lock(mutex_);
  ranks_.at(rank).report = report;
  ranks_[rank].known = true;
  heard_[rank] = Clock::now();
}

std::vector<RankState> RankTable::read() const {
  const std::lock_guard lock(mutex_);
  std::vector<RankState> ranks = ranks_;
  const Clock::time_point now = Clock::now();
  for (RankState& state : ranks) {
    state.silent_seconds = std::chrono::duration<double>(now - heard_[state.rank]).count();
  }
  return ranks;
}

void RankTable::raise(const Alarm& alarm) {
  const std::lock_guard lock(mutex_);
  if (!alarm_ || alarm_->teller < 0) {
    alarm_ = alarm;
  }
}

std::optional<Alarm> RankTable::alarm() const {
  const std::lock_guard lock(mutex_);
  return alarm_;
}

ThreadRankBoard::ThreadRankBoard(std::shared_ptr<RankTable> table, int rank)
    : table_(std::move(table)), rank_(rank) {}

std::optional<Alarm> ThreadRankBoard::post(const RankReport& report) {
  table_->report(rank_, report);
  return table_->alarm();
}

Teller ThreadRankBoard::raise(const std::string& cause) {
  table_->raise({cause, rank_});
  return table_->alarm()->teller == rank_ ? Teller::kThisRank : Teller::kAnotherRank;
}

}  // namespace narrowgauge::comm
