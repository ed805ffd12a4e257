#include "checkpoint/checkpoint_store.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <random>

#include "checkpoint/checkpoint_saver.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/latest_checkpoint.h"
#include "checkpoint/sharded_checkpoint.h"
#include "comm/self_communicator.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kRows = 64;
constexpr int64_t kColumns = 32;

// Two tensors that hold the step everywhere, so that a mixture of two saves shows.
std::vector<ShardChunk> chunks_of(int64_t step, int rank = 0, int size = 1,
                                  int64_t columns = kColumns) {
  const int64_t rows = kRows / size;
  return {
      {"a", at::full({rows, columns}, static_cast<double>(step)), {kRows, columns}, rank * rows},
      {"b", at::full({}, step, at::kLong), {}, 0}};
}

class CheckpointStore : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TEST_TMPDIR");
    std::string name = (fs::path(root ? root : "/tmp") / "store.XXXXXX").string();
    root_ = ::mkdtemp(name.data());
    store_ = root_ / "run" / "checkpoints";
  }
  void TearDown() override { fs::remove_all(root_); }

  void save(int64_t step) { save_checkpoint(store_, step, chunks_of(step), "{}", self_); }

  // The step of the checkpoint that resuming would take, after loading all of it; -1 where there is
  // none.
  int64_t resumed_step() {
    const LatestCheckpoint latest = find_latest_checkpoint(store_, self_);
    if (!latest.folder) {
      return -1;
    }
    const Checkpoint checkpoint = Checkpoint::open(*latest.folder);
    const int64_t step = checkpoint.manifest().step;
    const std::vector<ShardChunk> loaded = chunks_of(-7);
    checkpoint.load(loaded);
    EXPECT_TRUE(loaded[0].local.equal(chunks_of(step)[0].local)) << step;
    EXPECT_EQ(loaded[1].local.item<int64_t>(), step);
    return step;
  }

  void damage(int64_t step) {
    const fs::path path =
        store_ / ("step-0000000" + std::to_string(step)) / "rank-00000.safetensors";
    std::string bytes = read_file(path);
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }

  std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(store_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  fs::path root_;
  comm::SelfCommunicator self_;
  fs::path store_;
};

TEST_F(CheckpointStore, SavesAndFindsTheLatest) {
  EXPECT_EQ(resumed_step(), -1);
  EXPECT_THAT(find_latest_checkpoint(store_, self_).warnings, IsEmpty());
  save(1);
  save(2);
  EXPECT_EQ(resumed_step(), 2);
  EXPECT_EQ(read_file(store_ / "latest"), "step-00000002\n");
  EXPECT_THAT(entries(), ElementsAre("latest", "step-00000001", "step-00000002"));
  save(2);  // the same step again replaces it
  EXPECT_THAT(entries(), ElementsAre("latest", "step-00000001", "step-00000002"));
  EXPECT_THROW(save(-1), c10::Error);
}

TEST_F(CheckpointStore, LatestWinsOverALargerStep) {
  save(5);
  save(3);  // a run that went back
  EXPECT_EQ(resumed_step(), 3);
  save(2);
  save(4);  // went on from there: 5 is of the abandoned branch
  EXPECT_THAT(list_checkpoints(store_),
              ElementsAre(store_ / "step-00000004", store_ / "step-00000003",
                          store_ / "step-00000002", store_ / "step-00000005"));
  damage(4);
  EXPECT_EQ(resumed_step(), 3);
  fs::remove_all(store_ / "step-00000004");
  fs::remove(store_ / "latest");
  EXPECT_EQ(resumed_step(), 5);
  for (const char* nonsense : {"", "\n", "step-9\n", "../../etc\n", "step-00000099\n"}) {
    std::ofstream(store_ / "latest", std::ios::trunc) << nonsense;
    EXPECT_EQ(resumed_step(), 5) << nonsense;
  }
}

TEST_F(CheckpointStore, FallsBackFromDamageWithAWarning) {
  for (const int64_t step : {1, 2, 3}) {
    save(step);
  }
  damage(3);
  fs::remove(store_ / "step-00000002" / "manifest.json");
  const LatestCheckpoint latest = find_latest_checkpoint(store_, self_);
  EXPECT_EQ(latest.folder, store_ / "step-00000001");
  ASSERT_EQ(latest.warnings.size(), 2U);
  EXPECT_THAT(latest.warnings[0], HasSubstr("step-00000003 is damaged"));
  EXPECT_THAT(latest.warnings[0], HasSubstr("tensor '"));
  EXPECT_THAT(latest.warnings[1], HasSubstr("manifest.json"));
  damage(1);
  EXPECT_EQ(find_latest_checkpoint(store_, self_).folder, std::nullopt);
  EXPECT_EQ(find_latest_checkpoint(store_, self_).warnings.size(), 3U);
}

TEST_F(CheckpointStore, AllRanksGetTheAnswerOfTheFirst) {
  save(1);
  save(2);
  damage(2);
  testing::run_ranks(3, [&](comm::Communicator& communicator) {
    const LatestCheckpoint latest = find_latest_checkpoint(store_, communicator);
    EXPECT_EQ(latest.folder, store_ / "step-00000001");
    EXPECT_EQ(latest.warnings.size(), 1U);
  });
}

TEST_F(CheckpointStore, RanksSaveTogetherAndLeftoversGo) {
  fs::create_directories(store_ / "step-00000009.tmp");
  testing::run_ranks(4, [&](comm::Communicator& communicator) {
    save_checkpoint(store_, 8, chunks_of(8, communicator.rank(), 4), "{}", communicator);
  });
  EXPECT_EQ(resumed_step(), 8);
  EXPECT_THAT(entries(), ElementsAre("latest", "step-00000008"));
}

TEST_F(CheckpointStore, PruningKeepsTheNewestTheLatestAndTheLastGoodOne) {
  for (const int64_t step : {1, 2, 3, 4}) {
    save(step);
  }
  EXPECT_THAT(prune_checkpoints(store_, 0), IsEmpty());
  EXPECT_THAT(prune_checkpoints(store_, 3), ElementsAre(store_ / "step-00000001"));
  fs::remove(store_ / "step-00000004" / "rank-00000.safetensors");
  EXPECT_THAT(prune_checkpoints(store_, 1), IsEmpty());  // would leave only the broken one
  save(3);
  save(2);  // a run that went back: latest is 2
  EXPECT_THAT(prunable_checkpoints(store_, 1),
              ElementsAre(store_ / "step-00000004", store_ / "step-00000003"));
  EXPECT_THAT(prune_checkpoints(store_, 2), ElementsAre(store_ / "step-00000003"));
  EXPECT_EQ(resumed_step(), 2);
  EXPECT_THAT(prune_checkpoints(root_ / "absent", 1), IsEmpty());
}

TEST_F(CheckpointStore, AReplacementThatWasCutShortIsPutBack) {
  save(1);
  save(2);
  fs::rename(store_ / "step-00000002", store_ / "step-00000002.old");
  fs::create_directories(store_ / "step-00000002.tmp");
  fs::create_directories(store_ / "step-00000001.old");
  remove_leftovers(store_);
  EXPECT_THAT(entries(), ElementsAre("latest", "step-00000001", "step-00000002"));
  EXPECT_EQ(resumed_step(), 2);
}

// Kills a process that saves all the time, 50 times; no checkpoint is ever lost.
class KilledSaves : public CheckpointStore, public ::testing::WithParamInterface<bool> {
 protected:
  // Never returns. Two ranks, the tensors changed as soon as start() allows where `is_async`.
  void save_forever(int64_t first_step, bool is_async) {
    testing::run_ranks(2, [&](comm::Communicator& communicator) {
      CheckpointSaver saver(store_, 2, communicator);
      const auto staging =
          is_async ? CheckpointSaver::Staging::kCopy : CheckpointSaver::Staging::kInPlace;
      for (int64_t step = first_step;; ++step) {
        const auto chunks = chunks_of(step, communicator.rank(), 2);
        saver.start(step, chunks, "{}", staging);
        if (is_async) {
          chunks[0].local.fill_(-1);
          chunks[1].local.fill_(-1);
          for (int training = 0; training < 3; ++training) {
            saver.poll();
            ::usleep(500);
          }
        }
        saver.wait();
      }
    });
  }
};

TEST_P(KilledSaves, FiftyKillsNeverLoseACheckpoint) {
  std::mt19937 random(42);
  double longest_us = 10'000;  // follows the disk, so that about half of the kills see a whole save
  int64_t newest = -1;
  int64_t num_advanced = 0;
  for (int kill = 0; kill < 50; ++kill) {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        save_forever(newest + 1, GetParam());
      } catch (...) {
        ::_exit(1);
      }
    }
    ::usleep(
        std::uniform_int_distribution<useconds_t>(0, static_cast<useconds_t>(longest_us))(random));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the saving process failed by itself";
    const int64_t resumed = resumed_step();
    EXPECT_THAT(find_latest_checkpoint(store_, self_).warnings, IsEmpty());
    EXPECT_GE(resumed, newest);
    num_advanced += resumed > newest;
    longest_us *= resumed > newest ? 0.7 : 1.4;
    newest = resumed;
  }
  EXPECT_GT(num_advanced, 5) << "the kills came before anything was saved";
  save(newest + 1);
  EXPECT_EQ(resumed_step(), newest + 1);
  remove_leftovers(store_);
  for (const std::string& name : entries()) {
    EXPECT_THAT(name, ::testing::Not(::testing::EndsWith(".tmp")));
  }
}

INSTANTIATE_TEST_SUITE_P(InPlaceAndBeside, KilledSaves, ::testing::Bool());

// In a child, since a file-size limit holds for the whole process. Both ranks' files exceed it at
// 1,024 columns; with an enormous state only the manifest does.
TEST_F(CheckpointStore, FullDiskKeepsOldCheckpointsAndEveryRankThrows) {
  save(1);
  for (const bool is_in_manifest : {false, true}) {
    const std::string state =
        R"({"text":")" + std::string(is_in_manifest ? 100'000 : 1, 'x') + R"("})";
    const pid_t child = ::fork();
    if (child == 0) {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit = {65536, 65536};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      std::vector<int> has_thrown(2, 0);
      testing::run_ranks(2, [&](comm::Communicator& communicator) {
        try {
          save_checkpoint(store_, 2,
                          chunks_of(2, communicator.rank(), 2, is_in_manifest ? kColumns : 1024),
                          state, communicator);
        } catch (const std::runtime_error& error) {
          has_thrown[communicator.rank()] =
              std::string(error.what()).find("step-00000002.tmp") != std::string::npos;
        }
      });
      ::_exit(has_thrown[0] + has_thrown[1]);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status)) << status;
    EXPECT_EQ(WEXITSTATUS(status), 2);
    EXPECT_THAT(entries(), ElementsAre("latest", "step-00000001"));
    EXPECT_EQ(resumed_step(), 1);
  }
}

TEST_F(CheckpointStore, AStoreThatIsAFileIsNamed) {
  fs::create_directories(root_ / "run");
  write_durable_file(store_, "not a folder");
  EXPECT_THROW(save(1), std::exception);
  EXPECT_EQ(read_file(store_), "not a folder");
}

}  // namespace
}  // namespace narrowgauge::checkpoint
