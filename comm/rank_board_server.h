#pragma once

#include <list>
#include <string>
#include <thread>

#include "comm/rank_board_message.h"
#include "comm/rank_table.h"
#include "comm/tcp_socket.h"

namespace narrowgauge::comm {

// The board of ranks that are processes, kept by one of them (rank 0) and served over TCP by a
// thread of its own. A connection that ends without a farewell raises the alarm: that process has
// died. Strangers, who do not know the token, are hung up on.
class RankBoardServer {
 public:
  // Throws std::runtime_error when no port can be opened.
  explicit RankBoardServer(int size);
  // Bids the ranks farewell, so that none takes the end of this process for its death.
  ~RankBoardServer();
  RankBoardServer(const RankBoardServer&) = delete;
  RankBoardServer& operator=(const RankBoardServer&) = delete;

  const BoardAddress& address() const { return address_; }

 private:
  struct Connection {
    TcpSocket socket;
    int rank = -1;  // until it says hello
    std::string place;
    bool farewell = false;
  };

  void serve();
  // Answers what has arrived.
  void answer(Connection& connection);
  BoardReply reply_to(Connection& connection, const BoardRequest& request);
  void mourn(const Connection& connection);

  RankTable table_;
  TcpListener listener_;
  BoardAddress address_;
  std::list<Connection> connections_;  // the thread's own
  int wake_read_ = -1;                 // a pipe; closing its other end stops the thread
  int wake_write_ = -1;
  std::thread thread_;
};

}  // namespace narrowgauge::comm
