#include "comm/rank_board_message.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

namespace narrowgauge::comm {

using Json = nlohmann::json;

// Found by nlohmann's conversions, hence in the types' own namespace.
static void to_json(Json& json, const GroupProgress& group) {
  json = {{"id", group.id},           {"name", group.name},           {"size", group.size},
          {"started", group.started}, {"operation", group.operation}, {"finished", group.finished}};
}

static void from_json(const Json& json, GroupProgress& group) {
  json.at("id").get_to(group.id);
  json.at("name").get_to(group.name);
  json.at("size").get_to(group.size);
  json.at("started").get_to(group.started);
  json.at("operation").get_to(group.operation);
  json.at("finished").get_to(group.finished);
}

static void to_json(Json& json, const RankReport& report) {
  json = {{"groups", report.groups}, {"waits_in", report.waits_in}};
}

static void from_json(const Json& json, RankReport& report) {
  json.at("groups").get_to(report.groups);
  json.at("waits_in").get_to(report.waits_in);
}

static void to_json(Json& json, const RankState& state) {
  json = {{"rank", state.rank},
          {"known", state.known},
          {"silent_seconds", state.silent_seconds},
          {"report", state.report}};
}

static void from_json(const Json& json, RankState& state) {
  json.at("rank").get_to(state.rank);
  json.at("known").get_to(state.known);
  json.at("silent_seconds").get_to(state.silent_seconds);
  json.at("report").get_to(state.report);
}

namespace {

// A cause may quote bytes that are no UTF-8.
std::string to_line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

BoardRequest to_request(const Json& json) {
  using Kind = BoardRequest::Kind;
  BoardRequest request;
  if (json.contains("hello")) {
    request.kind = Kind::kHello;
    json.at("hello").get_to(request.rank);
    json.at("token").get_to(request.token);
    json.at("place").get_to(request.place);
  } else if (json.contains("post")) {
    request.kind = Kind::kPost;
    json.at("post").get_to(request.report);
  } else if (json.contains("raise")) {
    request.kind = Kind::kRaise;
    json.at("raise").get_to(request.cause);
  } else {
    request.kind = json.contains("farewell") ? Kind::kFarewell : Kind::kRead;
    json.at(json.contains("farewell") ? "farewell" : "read");
  }
  return request;
}

BoardReply to_reply(const Json& json) {
  BoardReply reply;
  reply.token = json.value("token", "");
  reply.farewell = json.value("farewell", false);
  if (json.contains("alarm")) {
    reply.alarm = Alarm{json.at("alarm").at("cause"), json.at("alarm").at("teller")};
  }
  if (json.contains("ranks")) {
    json.at("ranks").get_to(reply.ranks);
  }
  return reply;
}

}  // namespace

std::string encode(const BoardRequest& request) {
  switch (request.kind) {
    case BoardRequest::Kind::kHello:
      return to_line({{"hello", request.rank}, {"token", request.token}, {"place", request.place}});
    case BoardRequest::Kind::kPost:
      return to_line({{"post", request.report}});
    case BoardRequest::Kind::kRead:
      return to_line({{"read", true}});
    case BoardRequest::Kind::kRaise:
      return to_line({{"raise", request.cause}});
    case BoardRequest::Kind::kFarewell:
      return to_line({{"farewell", true}});
  }
  throw std::logic_error("expected a kind of BoardRequest");
}

std::string encode(const BoardReply& reply) {
  Json json = Json::object();
  if (!reply.token.empty()) {
    json["token"] = reply.token;
  }
  if (reply.farewell) {
    json["farewell"] = true;
  }
  if (reply.alarm) {
    json["alarm"] = {{"cause", reply.alarm->cause}, {"teller", reply.alarm->teller}};
  }
  if (!reply.ranks.empty()) {
    json["ranks"] = reply.ranks;
  }
  return to_line(json);
}

std::optional<BoardRequest> decode_request(const std::string& line) {
  try {
    return to_request(Json::parse(line));
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

std::optional<BoardReply> decode_reply(const std::string& line) {
  try {
    return to_reply(Json::parse(line));
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

std::string encode(const BoardAddress& address) {
  return to_line({{"hosts", address.hosts},
                  {"port", address.port},
                  {"rank_token", address.rank_token},
                  {"server_token", address.server_token}});
}

BoardAddress decode_address(const std::string& text) {
  try {
    const Json json = Json::parse(text);
    return {json.at("hosts"), json.at("port"), json.at("rank_token"), json.at("server_token")};
  } catch (const Json::exception& error) {
    throw std::runtime_error(std::string("expected the address of a rank board: ") + error.what());
  }
}

}  // namespace narrowgauge::comm
