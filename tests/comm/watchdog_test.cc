#include "comm/watchdog.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "comm/device_mesh.h"
#include "comm/rank_table.h"
#include "comm/self_communicator.h"
#include "comm/thread_communicator.h"
#include "comm/watched_communicator.h"
#include "tests/comm/communicator_cases.h"

namespace narrowgauge::comm {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

fs::path fresh_directory(const std::string& name) {
  const fs::path path = fs::path(::testing::TempDir()) / name;
  fs::remove_all(path);
  return path;
}

nlohmann::json record_of(const fs::path& directory, int rank) {
  std::ifstream file(directory / ("rank-" + std::to_string(rank) + ".json"));
  return nlohmann::json::parse(file);
}

// One rank that is a thread, with all that watches it. A failure aborts the communicator.
struct WatchedRank {
  WatchedRank(std::shared_ptr<ThreadCommunicator> inner, std::shared_ptr<RankTable> table,
              const WatchdogOptions& options)
      : record(std::make_shared<FlightRecord>()),
        communicator(std::make_shared<WatchedCommunicator>(inner, record, "world", "world")),
        watchdog(inner->rank(), inner->size(), options, record,
                 std::make_shared<ThreadRankBoard>(table, inner->rank()),
                 [inner](const std::string& cause, Teller) { inner->abort(cause); }) {}

  std::shared_ptr<FlightRecord> record;
  std::shared_ptr<WatchedCommunicator> communicator;
  Watchdog watchdog;
};

// Runs `body` on watched ranks; returns what each rank threw, empty for nothing.
std::vector<std::string> run_watched(
    int size, const WatchdogOptions& options,
    const std::function<void(std::shared_ptr<Communicator>)>& body) {
  const auto table = std::make_shared<RankTable>(size);
  std::vector<std::future<std::string>> running;
  for (const auto& inner : ThreadCommunicator::create(size)) {
    running.push_back(std::async(std::launch::async, [=, &options, &body]() -> std::string {
      const WatchedRank rank(inner, table, options);
      try {
        body(rank.communicator);
      } catch (const std::exception& error) {
        return error.what();
      }
      return "";
    }));
  }
  std::vector<std::string> thrown;
  for (auto& each : running) {
    thrown.push_back(each.get());
  }
  return thrown;
}

TEST(Watchdog, ALateCollectiveNamesItselfAndWhoHasNotArrived) {
  const WatchdogOptions options{milliseconds(400), fresh_directory("late"), 10};
  const Clock::time_point began = Clock::now();
  const auto thrown = run_watched(4, options, [](std::shared_ptr<Communicator> world) {
    barrier(*world);
    const auto shard = world->split(world->rank() / 2, 0);
    set_group_name(*shard, "shard");
    barrier(*shard);
    if (world->rank() == 2) {
      std::this_thread::sleep_for(milliseconds(1500));
      return;
    }
    shard->all_gather(at::zeros({8}), at::zeros({4}));
    world->all_reduce(at::zeros({2}, at::kLong), ReduceOp::kMax);
  });
  EXPECT_LT(Clock::now() - began, milliseconds(5000));
  EXPECT_EQ(thrown[2], "");
  const std::string cause = thrown[3];
  EXPECT_TRUE(thrown[0] == cause && thrown[1] == cause) << "the first cause reaches all";
  EXPECT_EQ(cause.rfind("collective timed out after 0.", 0), 0U) << cause;
  EXPECT_NE(cause.find("(limit 0.4 s)"), std::string::npos) << cause;
  // Either collective that rank 2 misses may be found first.
  EXPECT_TRUE(cause.find("#2 all_gather of 32 bytes of Float in group shard; not arrived: "
                         "rank 2 (at #1 all_reduce)") != std::string::npos ||
              cause.find("#3 all_reduce of 16 bytes of Long in group world; not arrived: rank 2 "
                         "(at #2 split), rank 3 (in #2 all_gather of 32 bytes of Float in "
                         "group shard)") != std::string::npos)
      << cause;
}

TEST(Watchdog, EveryWaitingRankLeavesItsFlightRecord) {
  const WatchdogOptions options{milliseconds(300), fresh_directory("records")};
  run_watched(3, options, [](std::shared_ptr<Communicator> world) {
    for (int i = 0; i < 20; ++i) {
      world->all_gather(at::zeros({6}), at::zeros({2}));
    }
    if (world->rank() == 1) {
      std::this_thread::sleep_for(milliseconds(1200));
    } else {
      world->broadcast(at::zeros({5}, at::kHalf), 0);
    }
  });
  for (const int rank : {0, 2}) {
    const nlohmann::json json = record_of(options.record_directory, rank);
    EXPECT_EQ(json["rank"], rank);
    EXPECT_EQ(json["world_size"], 3);
    ASSERT_EQ(json["collectives"].size(), 21U);
    EXPECT_EQ(json["collectives"][20]["operation"], "broadcast");
    EXPECT_EQ(json["collectives"][20]["sequence"], 21);
    EXPECT_EQ(json["collectives"][20]["dtype"], "Half");
    EXPECT_TRUE(json["collectives"][20]["seconds"].is_null());
    EXPECT_EQ(json["collectives"][0]["bytes"], 24);
    EXPECT_NE(json["reason"].get<std::string>().find("rank 1"), std::string::npos)
        << json["reason"];
  }
}

TEST(Watchdog, CollectivesInTimeDisturbNobody) {
  const WatchdogOptions options{milliseconds(500), fresh_directory("quiet")};
  const auto thrown = run_watched(3, options, [](std::shared_ptr<Communicator> world) {
    for (int i = 0; i < 10; ++i) {
      barrier(*world);
      std::this_thread::sleep_for(milliseconds(100));
    }
  });
  for (const std::string& each : thrown) {
    EXPECT_EQ(each, "");
  }
  EXPECT_FALSE(fs::exists(options.record_directory));
}

TEST(Watchdog, TheTimeoutCanChange) {
  const auto record = std::make_shared<FlightRecord>();
  record->name_group("w", "world", 1);
  std::promise<std::string> told;
  Watchdog watchdog(0, 1, {std::chrono::hours(1), {}}, record,
                    std::make_shared<ThreadRankBoard>(std::make_shared<RankTable>(1), 0),
                    [&](const std::string& cause, Teller) { told.set_value(cause); });
  record->start("w", "all_gather", at::kByte, 1);
  watchdog.set_timeout(milliseconds(1));
  EXPECT_NE(told.get_future().get().find("(limit 0.0 s): #1 all_gather"), std::string::npos);
}

TEST(Watchdog, AProbesComplaintIsAFailure) {
  const auto record = std::make_shared<FlightRecord>();
  std::promise<std::string> told;
  Watchdog watchdog(0, 1, {milliseconds(100), {}}, record,
                    std::make_shared<ThreadRankBoard>(std::make_shared<RankTable>(1), 0),
                    [&](const std::string& cause, Teller) { told.set_value(cause); });
  std::atomic<bool> broken = false;
  watchdog.add_probe([&]() -> std::optional<std::string> {
    return broken ? std::make_optional<std::string>("the device is lost") : std::nullopt;
  });
  const int removed = watchdog.add_probe([]() -> std::optional<std::string> { return {}; });
  watchdog.remove_probe(removed);
  broken = true;
  EXPECT_EQ(told.get_future().get(), "the device is lost");
}

TEST(Watchdog, ADeviceThatFailsIsAFailure) {
  const auto record = std::make_shared<FlightRecord>();
  record->name_group("w", "world", 1);
  std::promise<std::string> told;
  Watchdog watchdog(0, 1, {milliseconds(100), {}}, record,
                    std::make_shared<ThreadRankBoard>(std::make_shared<RankTable>(1), 0),
                    [&](const std::string& cause, Teller) { told.set_value(cause); });
  record->finish_when(record->start("w", "all_gather", at::kByte, 1),
                      []() -> bool { throw std::runtime_error("an illegal memory access"); });
  EXPECT_EQ(told.get_future().get(), "a device has failed: an illegal memory access");
}

// A rank that fails says so itself; the others write their records and leave it to it.
TEST(Watchdog, ARankThatFailsIsNotContradicted) {
  const WatchdogOptions options{milliseconds(200), fresh_directory("told")};
  const auto table = std::make_shared<RankTable>(2);
  const auto inner = ThreadCommunicator::create(2);
  WatchedRank zero(inner[0], table, options);
  WatchedRank one(inner[1], table, options);
  EXPECT_EQ(one.watchdog.fail("a bad gradient"), Teller::kThisRank);
  EXPECT_EQ(one.watchdog.fail("its consequence"), Teller::kUnknown);
  EXPECT_EQ(record_of(options.record_directory, 1)["reason"], "a bad gradient");
  const fs::path others = options.record_directory / "rank-0.json";
  EXPECT_TRUE(fs::exists(others)) << "fail() leaves the others the time";
  EXPECT_EQ(record_of(options.record_directory, 0)["reason"], "rank 1 failed: a bad gradient");
  // Nothing was aborted: the owner of rank 1 ends the job.
  std::thread partner([&] { barrier(*inner[1]); });
  barrier(*inner[0]);
  partner.join();
}

TEST(Watchdog, AFlightRecordThatCannotBeWrittenHidesNothing) {
  const fs::path in_the_way = fresh_directory("in_the_way");
  std::ofstream(in_the_way) << "a file";
  const auto thrown =
      run_watched(2, {milliseconds(200), in_the_way}, [](std::shared_ptr<Communicator> world) {
        if (world->rank() == 0) {
          barrier(*world);
        } else {
          std::this_thread::sleep_for(milliseconds(800));
        }
      });
  EXPECT_EQ(thrown[0].rfind("collective timed out", 0), 0U) << thrown[0];
}

RankState state_of(int rank, const std::string& group, int64_t started, const char* operation) {
  RankState state;
  state.rank = rank;
  state.known = true;
  state.report.groups = {{group, group, 3, started, operation, started}};
  return state;
}

TEST(DescribeAbsentees, TellsTheCasesApart) {
  const GroupProgress mine{"g", "g", 3, 9, "all_gather", 8};
  const RankState zero = state_of(0, "g", 9, "all_gather");
  RankState one = state_of(1, "g", 7, "broadcast");
  one.silent_seconds = 9.84;
  EXPECT_EQ(describe_absentees(mine, {zero, one, state_of(2, "g", 12, "split")}),
            "; not arrived: rank 1 (last heard at #7 broadcast, silent for 9.8 s: stopped?)");
  EXPECT_EQ(describe_absentees(mine, {zero, state_of(1, "g", 9, "all_reduce"), zero}),
            "; called something else: rank 1 (all_reduce)");
  RankState stopped = zero;
  stopped.silent_seconds = 3.0;
  EXPECT_EQ(describe_absentees(mine, {zero, zero, stopped}),
            "; arrived, but silent since: rank 0 (silent for 3.0 s: stopped?)");
  EXPECT_EQ(describe_absentees(mine, {stopped, zero, zero}),
            "; rank 0 keeps the board and is silent for 3.0 s: stopped? Nothing newer is known of "
            "the others");
  EXPECT_EQ(describe_absentees(mine, {zero, zero, zero}),
            "; all ranks have arrived: the network or the device is stuck");
  RankState unknown;
  unknown.rank = 2;
  EXPECT_EQ(describe_absentees(mine, {zero, zero, unknown}),
            "; not arrived: rank 2 (in no collective of this group)");
  EXPECT_EQ(describe_absentees(mine, {zero, zero, unknown, unknown}),
            "; not arrived: 1 that have not reported this group yet");
  unknown.silent_seconds = 4;
  EXPECT_EQ(
      describe_absentees(mine, {zero, zero, state_of(2, "other", 1, "split"), unknown}),
      "; not arrived: 1 that have not reported this group yet, maybe rank 2 (last heard in no "
      "collective of this group, silent for 4.0 s: stopped?)");
}

TEST(WatchedCommunicator, NamesTheAxesOfAMesh) {
  const auto thrown = run_watched(4, {}, [](std::shared_ptr<Communicator> world) {
    const DeviceMesh mesh(world, 2, 2);
    barrier(mesh.shard_axis());
  });
  EXPECT_EQ(thrown, std::vector<std::string>(4));
  const auto record = std::make_shared<FlightRecord>();
  const auto world = std::make_shared<WatchedCommunicator>(std::make_shared<SelfCommunicator>(),
                                                           record, "world", "world");
  set_group_name(*world->split(0, 0), "shard");
  EXPECT_EQ(record->progress()[0].name, "world");
  EXPECT_EQ(record->progress()[1].name, "shard");
  EXPECT_EQ(record->progress()[1].id, "world/0:0");
  set_group_name(*std::make_shared<SelfCommunicator>(), "no watch, no effect");
}

class WatchedCases : public ::testing::TestWithParam<CommunicatorCase> {};

TEST_P(WatchedCases, HoldWhenWatched) {
  const auto thrown =
      run_watched(3, {}, [](std::shared_ptr<Communicator> world) { GetParam().run(*world); });
  EXPECT_EQ(thrown, std::vector<std::string>(3));
}

INSTANTIATE_TEST_SUITE_P(Communicator, WatchedCases, ::testing::ValuesIn(communicator_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace narrowgauge::comm
