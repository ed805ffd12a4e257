#include "comm/tcp_rank_board.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "comm/rank_board_server.h"

namespace narrowgauge::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

RankReport report_at(int64_t sequence, const std::string& waits_in = "") {
  return {{{"w", "world", 2, sequence, "all_gather", sequence - 1}}, waits_in};
}

// Posts until the alarm is there: the server notices the end of a connection a moment later.
std::optional<Alarm> alarm_of(RankBoard& board) {
  for (int i = 0; i < 200; ++i) {
    if (const auto alarm = board.post(report_at(1))) {
      return alarm;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
  return std::nullopt;
}

// A rank that introduces itself and then does what a test likes.
TcpSocket introduced(const BoardAddress& address, int rank, const std::string& token) {
  TcpSocket socket = TcpSocket::connect(address.hosts.back(), address.port, milliseconds(2000));
  BoardRequest hello;
  hello.rank = rank;
  hello.token = token;
  hello.place = "somewhere, process 7";
  EXPECT_TRUE(socket.send_line(encode(hello)));
  return socket;
}

TEST(TcpRankBoard, EveryRankSeesWhatTheOthersPosted) {
  RankBoardServer server(3);
  TcpRankBoard zero(server.address(), 0, 3);
  TcpRankBoard one(server.address(), 1, 3);
  EXPECT_EQ(zero.post(report_at(5, "#5 all_gather")), std::nullopt);
  EXPECT_EQ(one.post(report_at(4)), std::nullopt);
  const std::vector<RankState> ranks = one.read();
  ASSERT_EQ(ranks.size(), 3U);
  EXPECT_TRUE(ranks[0].known);
  EXPECT_EQ(ranks[0].report.groups.at(0).started, 5);
  EXPECT_EQ(ranks[0].report.groups[0].name, "world");
  EXPECT_EQ(ranks[0].report.waits_in, "#5 all_gather");
  EXPECT_EQ(ranks[1].report.groups.at(0).started, 4);
  EXPECT_FALSE(ranks[2].known);
  EXPECT_LT(ranks[0].silent_seconds, 2.0);
}

TEST(TcpRankBoard, AFailureIsToldToAll) {
  RankBoardServer server(2);
  TcpRankBoard zero(server.address(), 0, 2);
  TcpRankBoard one(server.address(), 1, 2);
  EXPECT_EQ(one.raise("rank 1 failed: \"quoted\"\nand \xff"), Teller::kThisRank);
  EXPECT_EQ(zero.raise("a consequence"), Teller::kAnotherRank);
  const auto alarm = zero.post(report_at(1));
  ASSERT_TRUE(alarm.has_value());
  EXPECT_EQ(alarm->teller, 1);
  EXPECT_EQ(alarm->cause.rfind("rank 1 failed: \"quoted\"\nand ", 0), 0U) << alarm->cause;
}

TEST(TcpRankBoard, AConnectionThatEndsWithoutFarewellIsADeath) {
  RankBoardServer server(2);
  TcpRankBoard zero(server.address(), 0, 2);
  {
    TcpSocket one = introduced(server.address(), 1, server.address().rank_token);
    ASSERT_TRUE(one.receive_line(milliseconds(2000)).has_value());
    BoardRequest post;
    post.kind = BoardRequest::Kind::kPost;
    post.report = report_at(7, "#7 all_gather of 8 bytes");
    ASSERT_TRUE(one.send_line(encode(post)));
    ASSERT_TRUE(one.receive_line(milliseconds(2000)).has_value());
  }
  const auto alarm = alarm_of(zero);
  ASSERT_TRUE(alarm.has_value());
  EXPECT_EQ(alarm->teller, -1);
  EXPECT_EQ(alarm->cause,
            "rank 1 (somewhere, process 7) has died; last heard in #7 all_gather of 8 bytes");
}

TEST(TcpRankBoard, FarewellsAreNoDeath) {
  auto server = std::make_unique<RankBoardServer>(2);
  TcpRankBoard zero(server->address(), 0, 2);
  { const TcpRankBoard one(server->address(), 1, 2); }
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(zero.post(report_at(1)), std::nullopt);
  server.reset();
  EXPECT_EQ(zero.post(report_at(2)), std::nullopt);
  EXPECT_EQ(zero.read().size(), 2U);
}

TEST(TcpRankBoard, AServerThatDiesIsRankZeroDead) {
  // A server that answers the hello and then hangs up.
  const TcpListener listener;
  const BoardAddress address{{"127.0.0.1"}, listener.port(), "rank", "server"};
  std::thread serving([&] {
    TcpSocket socket = listener.accept();
    socket.receive_line(milliseconds(2000));
    BoardReply reply;
    reply.token = "server";
    socket.send_line(encode(reply));
  });
  TcpRankBoard one(address, 1, 2);
  serving.join();
  const auto alarm = alarm_of(one);
  ASSERT_TRUE(alarm.has_value());
  EXPECT_EQ(alarm->cause.rfind("rank 0 has died", 0), 0U) << alarm->cause;
}

TEST(TcpRankBoard, AServerThatIsStoppedIsRankZeroSilent) {
  const TcpListener listener;
  const BoardAddress address{{"127.0.0.1"}, listener.port(), "rank", "server"};
  TcpSocket held;
  std::thread serving([&] {
    held = listener.accept();
    held.receive_line(milliseconds(2000));
    BoardReply reply;
    reply.token = "server";
    held.send_line(encode(reply));
  });
  TcpRankBoard one(address, 1, 2);
  serving.join();
  const Clock::time_point began = Clock::now();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(one.post(report_at(1)), std::nullopt);
  }
  EXPECT_LT(Clock::now() - began, milliseconds(2000)) << "only the first call waits for an answer";
  std::this_thread::sleep_for(milliseconds(300));
  const std::vector<RankState> ranks = one.read();
  ASSERT_EQ(ranks.size(), 2U);
  EXPECT_GT(ranks[0].silent_seconds, 0.6);
  EXPECT_EQ(one.raise("what it found"), Teller::kUnknown);
}

TEST(TcpRankBoard, StrangersAreHungUpOn) {
  RankBoardServer server(2);
  TcpRankBoard zero(server.address(), 0, 2);
  TcpSocket wrong_token = introduced(server.address(), 1, "guess");
  const auto reply = wrong_token.receive_line(milliseconds(2000));
  EXPECT_TRUE(!reply || decode_reply(*reply)->token.empty());
  EXPECT_EQ(wrong_token.receive_line(milliseconds(2000)), std::nullopt);
  EXPECT_FALSE(wrong_token.is_open());
  for (const std::string line : {"GET / HTTP/1.1", "{\"post\": 3}", "{\"read\": true}", "[]", ""}) {
    TcpSocket stranger = TcpSocket::connect(server.address().hosts.back(), server.address().port,
                                            milliseconds(2000));
    ASSERT_TRUE(stranger.send_line(line));
    EXPECT_EQ(stranger.receive_line(milliseconds(2000)), std::nullopt) << line;
    EXPECT_FALSE(stranger.is_open()) << line;
  }
  EXPECT_EQ(zero.post(report_at(1)), std::nullopt) << "a stranger's end is nobody's death";
}

TEST(TcpRankBoard, NamesTheAddressesItTried) {
  uint16_t port = 0;
  {
    const TcpListener closed;
    port = closed.port();
  }
  try {
    const TcpRankBoard board({{"127.0.0.1", "no address"}, port, "a", "b"}, 3, 4);
    ADD_FAILURE() << "expected an error";
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("rank 3 cannot reach"), std::string::npos) << text;
    EXPECT_NE(text.find("127.0.0.1, no address"), std::string::npos) << text;
  }
}

TEST(TcpRankBoard, AnotherServiceAtThePortIsNotTheServer) {
  RankBoardServer other(2);
  BoardAddress address = other.address();
  address.rank_token = "of another job";
  EXPECT_THROW(TcpRankBoard(address, 0, 2), std::runtime_error);
}

TEST(BoardAddress, SurvivesABroadcast) {
  const RankBoardServer server(1);
  const BoardAddress copy = decode_address(encode(server.address()));
  EXPECT_EQ(copy.hosts, server.address().hosts);
  EXPECT_EQ(copy.port, server.address().port);
  EXPECT_EQ(copy.rank_token, server.address().rank_token);
  EXPECT_EQ(copy.rank_token.size(), 32U);
  EXPECT_NE(copy.rank_token, copy.server_token);
  EXPECT_THROW(decode_address("{}"), std::runtime_error);
}

}  // namespace
}  // namespace narrowgauge::comm
