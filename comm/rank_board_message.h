#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/rank_board.h"

namespace narrowgauge::comm {

// What a rank and the board's server say to each other, a line of JSON each.
//
//   rank                                            server
//   {"hello": rank, "token", "place"}               {"token"}                   first of all
//   {"post": report}                                {"alarm"}, or {} while there is none
//   {"read": true}                                  {"alarm", "ranks": [state]}
//   {"raise": cause}                                {"alarm"}
//   {"farewell": true}                              {"alarm"}                   last of all
//                                                   {"farewell": true}          unasked, before it
//                                                   ends
struct BoardRequest {
  enum class Kind { kHello, kPost, kRead, kRaise, kFarewell };
  Kind kind = Kind::kHello;
  int rank = 0;       // kHello
  std::string token;  // kHello: proves that the rank belongs to this job
  std::string place;  // kHello: "host, process 123"
  RankReport report;  // kPost
  std::string cause;  // kRaise
};

struct BoardReply {
  std::string token;  // to kHello: proves that the server belongs to this job
  bool farewell = false;
  std::optional<Alarm> alarm;
  std::vector<RankState> ranks;  // to kRead
};

std::string encode(const BoardRequest& request);
std::string encode(const BoardReply& reply);

// Nothing when the line is no such message.
std::optional<BoardRequest> decode_request(const std::string& line);
std::optional<BoardReply> decode_reply(const std::string& line);

// Where the server of a job's board is, as text for one broadcast, and what proves the two sides to
// each other.
struct BoardAddress {
  std::vector<std::string> hosts;  // numeric; tried in this order
  uint16_t port = 0;
  std::string rank_token;    // sent by ranks
  std::string server_token;  // sent by the server
};
std::string encode(const BoardAddress& address);
// Throws std::runtime_error.
BoardAddress decode_address(const std::string& text);

}  // namespace narrowgauge::comm
