#include "comm/flight_record.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace narrowgauge::comm {
namespace {

namespace fs = std::filesystem;

fs::path fresh_directory(const std::string& name) {
  const fs::path path = fs::path(::testing::TempDir()) / name;
  fs::remove_all(path);
  return path;
}

nlohmann::json read_json(const fs::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

TEST(FlightRecord, NumbersTheCollectivesOfEachGroup) {
  FlightRecord record;
  record.name_group("w", "world", 4);
  record.name_group("w/0", "shard", 2);
  record.finish(record.start("w", "broadcast", c10::kFloat, 8));
  const int64_t ticket = record.start("w/0", "all_gather", c10::kBFloat16, 4096);
  record.start("w", "all_reduce", c10::kFloat, 4);

  const auto progress = record.progress();
  ASSERT_EQ(progress.size(), 2U);
  EXPECT_EQ(progress[0].name, "world");
  EXPECT_EQ(progress[0].started, 2);
  EXPECT_EQ(progress[0].finished, 1);
  EXPECT_EQ(progress[0].operation, "all_reduce");
  EXPECT_EQ(progress[1].started, 1);

  const auto oldest = record.oldest_pending();
  ASSERT_TRUE(oldest.has_value());
  EXPECT_EQ(record.describe(*oldest), "#1 all_gather of 4096 bytes of BFloat16 in group shard");
  record.finish(ticket);
  EXPECT_EQ(record.oldest_pending()->operation, std::string("all_reduce"));
}

TEST(FlightRecord, KeepsTheLastThousandAndWhatIsPending) {
  const fs::path directory = fresh_directory("ring");
  FlightRecord record;
  record.name_group("w", "world", 2);
  for (int i = 0; i < 1500; ++i) {
    record.finish(record.start("w", "all_gather", c10::kByte, i));
  }
  record.write(directory, 3, 4, "because");
  nlohmann::json json = read_json(directory / "rank-3.json");
  ASSERT_EQ(json["collectives"].size(), FlightRecord::kDefaultCapacity);
  EXPECT_EQ(json["collectives"].front()["sequence"], 501);
  EXPECT_EQ(json["collectives"].back()["sequence"], 1500);

  const int64_t stuck = record.start("w", "broadcast", c10::kByte, 1);
  for (int i = 0; i < 1500; ++i) {
    record.finish(record.start("w", "all_gather", c10::kByte, i));
  }
  ASSERT_TRUE(record.oldest_pending().has_value());
  EXPECT_EQ(record.oldest_pending()->sequence, 1501);
  record.finish(stuck);
  record.start("w", "all_gather", c10::kByte, 1);
  record.write(directory, 3, 4, "because");
  EXPECT_EQ(read_json(directory / "rank-3.json")["collectives"].size(),
            FlightRecord::kDefaultCapacity);
}

TEST(FlightRecord, WritesWhatADebuggerNeeds) {
  const fs::path directory = fresh_directory("whole") / "made" / "on demand";
  FlightRecord record;
  record.name_group("w", "world", 2);
  record.finish(record.start("w", "reduce_scatter", c10::kFloat, 64));
  record.start("w", "all_gather", c10::kHalf, 32);
  record.write(directory, 1, 2, "bytes that are no UTF-8: \xff");
  const nlohmann::json json = read_json(directory / "rank-1.json");
  EXPECT_EQ(json["rank"], 1);
  EXPECT_EQ(json["world_size"], 2);
  EXPECT_GT(json["process"], 0);
  EXPECT_FALSE(json["host"].get<std::string>().empty());
  EXPECT_EQ(json["groups"][0]["started"], 2);
  EXPECT_EQ(json["groups"][0]["finished"], 1);
  const auto& ended = json["collectives"][0];
  EXPECT_EQ(ended["operation"], "reduce_scatter");
  EXPECT_EQ(ended["dtype"], "Float");
  EXPECT_EQ(ended["bytes"], 64);
  EXPECT_GT(ended["started"], 1.6e9);
  EXPECT_GE(ended["seconds"], 0.0);
  EXPECT_TRUE(json["collectives"][1]["seconds"].is_null());
  EXPECT_EQ(std::distance(fs::directory_iterator(directory), {}), 1) << "no unfinished file stays";
}

TEST(FlightRecord, SaysWhereItCannotWrite) {
  const fs::path file = fresh_directory("file");
  std::ofstream(file) << "in the way";
  try {
    FlightRecord().write(file / "below", 0, 1, "because");
    ADD_FAILURE() << "expected an error";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find(file), std::string::npos) << error.what();
  }
}

TEST(FlightRecord, AsksTheDeviceWhetherItHasEnded) {
  FlightRecord record;
  record.name_group("w", "world", 2);
  bool ended = false;
  const int64_t ticket = record.start("w", "all_gather", c10::kFloat, 4);
  record.finish_when(ticket, [&ended] { return ended; });
  record.poll();
  EXPECT_TRUE(record.oldest_pending().has_value());
  ended = true;
  record.poll();
  EXPECT_FALSE(record.oldest_pending().has_value());
}

TEST(FlightRecord, TakesCollectivesOfManyThreads) {
  FlightRecord record;
  record.name_group("w", "world", 2);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&record] {
      for (int n = 0; n < 1000; ++n) {
        record.finish(record.start("w", "all_gather", c10::kByte, n));
        record.oldest_pending();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(record.progress()[0].started, 4000);
  EXPECT_EQ(record.progress()[0].finished, 4000);
}

}  // namespace
}  // namespace narrowgauge::comm
