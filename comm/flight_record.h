#pragma once

#include <c10/core/ScalarType.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace narrowgauge::comm {

// How far one rank has got in one group.
struct GroupProgress {
  std::string id;         // equal on all ranks of the group
  std::string name;       // what people call it: "world", "shard"
  int size = 0;           // ranks
  int64_t started = 0;    // sequence number of the last collective entered; the first is 1
  std::string operation;  // its name
  int64_t finished = 0;   // how many have ended
};

// One collective as one rank called it.
struct Collective {
  int64_t sequence = 0;  // in its group
  std::string group_id;
  const char* operation = "";  // the name of the method
  c10::ScalarType dtype = c10::ScalarType::Byte;
  int64_t size_bytes = 0;  // of the larger tensor
  std::chrono::system_clock::time_point started_at;
  std::chrono::steady_clock::time_point started;
  std::chrono::steady_clock::time_point ended;
  bool finished = false;
  // Asks the device whether the collective has ended; empty where the call itself is the end.
  std::function<bool()> has_ended;
};

// The last collectives of one rank, in all its groups, kept for the case that something goes wrong.
// Safe from any thread.
class FlightRecord {
 public:
  static constexpr size_t kDefaultCapacity = 1000;

  // `capacity` collectives are kept, or more while they have not ended.
  explicit FlightRecord(size_t capacity = kDefaultCapacity) : capacity_(capacity) {}

  // Makes a group known, or renames it. `id` must be equal on all its ranks and different from
  // those of their other groups.
  void name_group(const std::string& id, const std::string& name, int size);

  // A collective begins. Returns its ticket.
  int64_t start(const std::string& group_id, const char* operation, c10::ScalarType dtype,
                int64_t size_bytes);
  // It has ended, or will have when `has_ended` says so; poll() asks.
  void finish(int64_t ticket);
  void finish_when(int64_t ticket, std::function<bool()> has_ended);
  void poll();

  // The one that began first of those that have not ended.
  std::optional<Collective> oldest_pending() const;
  std::vector<GroupProgress> progress() const;
  // "#12 all_gather of 4096 bytes of float32 in group shard".
  std::string describe(const Collective& collective) const;

  // Writes directory/rank-N.json, whole or not at all: {"rank", "world_size", "host", "process",
  // "reason", "groups": [{"id", "name", "size", "started", "finished"}], "collectives":
  // [{"sequence", "operation", "group", "dtype", "bytes", "started", "seconds"}]}, oldest first;
  // "started" is in seconds since 1970, "seconds" is null while it has not ended. Throws
  // std::runtime_error when the file cannot be written.
  void write(const std::filesystem::path& directory, int rank, int world_size,
             const std::string& reason) const;

 private:
  // REQUIRES: mutex_ is held. nullptr when the ticket has left the record.
  Collective* find(int64_t ticket);
  void end(Collective& collective);

  const size_t capacity_;
  mutable std::mutex mutex_;
  std::map<std::string, GroupProgress> groups_;  // by id
  std::deque<Collective> collectives_;
  int64_t first_ticket_ = 0;  // of collectives_.front()
};

}  // namespace narrowgauge::comm
