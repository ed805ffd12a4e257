#pragma once

#include <chrono>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/rank_board_message.h"
#include "comm/tcp_socket.h"

namespace narrowgauge::comm {

// A rank's side of a RankBoardServer. When the server does not answer (rank 0 is stopped), the
// others are known as of its last answer and rank 0 as silent since then; when its connection ends
// without a farewell, rank 0 has died.
class TcpRankBoard final : public RankBoard {
 public:
  // Throws std::runtime_error with the addresses tried when the server is at none of them.
  TcpRankBoard(const BoardAddress& address, int rank, int size);
  // Bids the server farewell.
  ~TcpRankBoard() override;
  TcpRankBoard(const TcpRankBoard&) = delete;
  TcpRankBoard& operator=(const TcpRankBoard&) = delete;

  std::optional<Alarm> post(const RankReport& report) override;
  std::vector<RankState> read() override;
  Teller raise(const std::string& cause) override;

 private:
  // Sends a request and takes what answers come in time. REQUIRES: mutex_ is held.
  void exchange(const BoardRequest& request);
  void take(const BoardReply& reply);

  std::mutex mutex_;
  const int rank_;
  const int size_;
  TcpSocket socket_;
  int unanswered_ = 0;  // requests
  bool server_ended_ = false;
  std::optional<Alarm> alarm_;
  std::vector<RankState> ranks_;                 // as of the last answer to a read
  std::chrono::steady_clock::time_point heard_;  // the server's last answer
};

}  // namespace narrowgauge::comm
