#include "comm/tcp_rank_board.h"

#include <unistd.h>

#include <array>
#include <stdexcept>

namespace narrowgauge::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kConnectTimeout{2000};
// A server that is only busy answers sooner; a stopped one costs the watchdog this long.
constexpr milliseconds kAnswerTimeout{400};

std::string own_place() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return std::string(name.data()) + ", process " + std::to_string(getpid());
}

// The server at one of the address's hosts, introduced; others answer at those ports, too.
TcpSocket connect_to(const BoardAddress& address, int rank) {
  std::string tried;
  for (const std::string& host : address.hosts) {
    TcpSocket socket = TcpSocket::connect(host, address.port, kConnectTimeout);
    BoardRequest hello;
    hello.rank = rank;
    hello.token = address.rank_token;
    hello.place = own_place();
    if (socket.is_open() && socket.send_line(encode(hello))) {
      const auto line = socket.receive_line(kConnectTimeout);
      const auto reply = line ? decode_reply(*line) : std::nullopt;
      if (reply && reply->token == address.server_token) {
        return socket;
      }
    }
    tried += (tried.empty() ? "" : ", ") + host;
  }
  throw std::runtime_error("rank " + std::to_string(rank) +
                           " cannot reach the watchdog's board on rank 0 at port " +
                           std::to_string(address.port) + " of " + tried +
                           "; let the hosts connect to each other over TCP");
}

}  // namespace

TcpRankBoard::TcpRankBoard(const BoardAddress& address, int rank, int size)
    : rank_(rank),
      size_(size),
      socket_(connect_to(address, rank)),
      ranks_(size),
      heard_(Clock::now()) {
  for (int other = 0; other < size; ++other) {
    ranks_[other].rank = other;
  }
}

TcpRankBoard::~TcpRankBoard() {
  const std::lock_guard lock(mutex_);
  BoardRequest farewell;
  farewell.kind = BoardRequest::Kind::kFarewell;
  exchange(farewell);
}

void TcpRankBoard::take(const BoardReply& reply) {
  heard_ = Clock::now();
  if (reply.farewell) {
    server_ended_ = true;
    return;
  }
  --unanswered_;
  if (reply.alarm) {
    alarm_ = reply.alarm;
  }
  if (reply.ranks.size() == static_cast<size_t>(size_)) {
    ranks_ = reply.ranks;
  }
}

void TcpRankBoard::exchange(const BoardRequest& request) {
  // While the server owes an answer it is stopped; more requests would only fill its buffers.
  const bool was_silent = unanswered_ > 0;
  if (socket_.is_open() && !was_silent && socket_.send_line(encode(request))) {
    ++unanswered_;
  }
  while (unanswered_ > 0 && socket_.is_open() && !server_ended_) {
    const auto line = socket_.receive_line(was_silent ? milliseconds(0) : kAnswerTimeout);
    const auto reply = line ? decode_reply(*line) : std::nullopt;
    if (!reply) {
      break;
    }
    take(*reply);
  }
  if (!socket_.is_open() && !server_ended_ && !alarm_) {
    alarm_ = Alarm{"rank 0 has died: its connection to the watchdogs has ended", /*teller=*/-1};
  }
}

std::optional<Alarm> TcpRankBoard::post(const RankReport& report) {
  const std::lock_guard lock(mutex_);
  BoardRequest request;
  request.kind = BoardRequest::Kind::kPost;
  request.report = report;
  exchange(request);
  return alarm_;
}

std::vector<RankState> TcpRankBoard::read() {
  const std::lock_guard lock(mutex_);
  BoardRequest request;
  request.kind = BoardRequest::Kind::kRead;
  exchange(request);
  std::vector<RankState> ranks = ranks_;
  if (unanswered_ > 0 || !socket_.is_open()) {
    ranks[0].silent_seconds = std::chrono::duration<double>(Clock::now() - heard_).count();
  }
  return ranks;
}

Teller TcpRankBoard::raise(const std::string& cause) {
  const std::lock_guard lock(mutex_);
  BoardRequest request;
  request.kind = BoardRequest::Kind::kRaise;
  request.cause = cause;
  exchange(request);
  if (unanswered_ > 0 || !alarm_ || alarm_->teller < 0) {
    return Teller::kUnknown;
  }
  return alarm_->teller == rank_ ? Teller::kThisRank : Teller::kAnotherRank;
}

}  // namespace narrowgauge::comm
