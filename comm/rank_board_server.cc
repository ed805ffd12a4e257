#include "comm/rank_board_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <vector>

namespace narrowgauge::comm {
namespace {

using std::chrono::milliseconds;

// 128 random bits in hexadecimal.
std::string random_token() {
  std::array<uint32_t, 4> words{};
  if (getrandom(words.data(), sizeof words, 0) != sizeof words) {
    throw std::runtime_error("getrandom gave no random numbers");
  }
  std::string text;
  for (const uint32_t word : words) {
    std::array<char, 9> digits{};
    std::snprintf(digits.data(), digits.size(), "%08x", word);
    text += digits.data();
  }
  return text;
}

}  // namespace

RankBoardServer::RankBoardServer(int size)
    : table_(size), address_{host_addresses(), listener_.port(), random_token(), random_token()} {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) {
    throw std::runtime_error("pipe2 failed: no descriptors left?");
  }
  wake_read_ = ends[0];
  wake_write_ = ends[1];
  thread_ = std::thread([this] { serve(); });
}

RankBoardServer::~RankBoardServer() {
  close(wake_write_);
  thread_.join();
  close(wake_read_);
  BoardReply farewell;
  farewell.farewell = true;
  for (Connection& connection : connections_) {
    connection.socket.send_line(encode(farewell));
  }
}

void RankBoardServer::serve() {
  while (true) {
    std::vector<pollfd> polled = {{wake_read_, POLLIN, 0}, {listener_.descriptor(), POLLIN, 0}};
    for (const Connection& connection : connections_) {
      polled.push_back({connection.socket.descriptor(), POLLIN, 0});
    }
    if (poll(polled.data(), polled.size(), -1) < 0) {
      continue;  // EINTR
    }
    if (polled[0].revents != 0) {
      return;
    }
    size_t index = 2;
    for (auto each = connections_.begin(); each != connections_.end(); ++index) {
      if (polled[index].revents != 0) {
        answer(*each);
      }
      if (each->socket.is_open()) {
        ++each;
        continue;
      }
      mourn(*each);
      each = connections_.erase(each);
    }
    if (polled[1].revents != 0) {
      if (TcpSocket socket = listener_.accept(); socket.is_open()) {
        connections_.push_back({std::move(socket), -1, "", false});
      }
    }
  }
}

void RankBoardServer::answer(Connection& connection) {
  while (const auto line = connection.socket.receive_line(milliseconds(0))) {
    const auto request = decode_request(*line);
    if (!request || (connection.rank < 0 && request->kind != BoardRequest::Kind::kHello)) {
      return connection.socket.close();
    }
    const BoardReply reply = reply_to(connection, *request);
    if (connection.rank < 0 || !connection.socket.send_line(encode(reply))) {
      return connection.socket.close();
    }
  }
}

BoardReply RankBoardServer::reply_to(Connection& connection, const BoardRequest& request) {
  BoardReply reply;
  switch (request.kind) {
    case BoardRequest::Kind::kHello:
      if (request.token == address_.rank_token && request.rank >= 0 &&
          request.rank < static_cast<int>(table_.read().size())) {
        connection.rank = request.rank;
        connection.place = request.place;
        reply.token = address_.server_token;
      }
      break;
    case BoardRequest::Kind::kPost:
      table_.report(connection.rank, request.report);
      break;
    case BoardRequest::Kind::kRead:
      reply.ranks = table_.read();
      break;
    case BoardRequest::Kind::kRaise:
      table_.raise({request.cause, connection.rank});
      break;
    case BoardRequest::Kind::kFarewell:
      connection.farewell = true;
      break;
  }
  reply.alarm = table_.alarm();
  return reply;
}

void RankBoardServer::mourn(const Connection& connection) {
  if (connection.rank < 0 || connection.farewell) {
    return;
  }
  const RankReport last = table_.read()[connection.rank].report;
  table_.raise({"rank " + std::to_string(connection.rank) + " (" + connection.place + ") has died" +
                    (last.waits_in.empty() ? "" : "; last heard in " + last.waits_in),
                /*teller=*/-1});
}

}  // namespace narrowgauge::comm
