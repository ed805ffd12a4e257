#include "trainer/rank_device.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "comm/self_communicator.h"
#include "tests/support/run_ranks.h"
#include "trainer/config.h"

namespace narrowgauge::trainer {
namespace {

using Kind = FoundGpu::Kind;

TEST(RankDevice, GpusOfTheirOwnAreNoProblem) {
  EXPECT_EQ(problem_with_gpus({{Kind::kUsable, "a, GPU 0000:3B:00.0"}}), "");
  EXPECT_EQ(problem_with_gpus({{Kind::kUsable, "a, GPU 0000:3B:00.0"},
                               {Kind::kUsable, "a, GPU 0000:86:00.0"},
                               {Kind::kUsable, "b, GPU 0000:3B:00.0"}}),
            "");
}

TEST(RankDevice, NamesTheRanksThatHaveNone) {
  EXPECT_EQ(problem_with_gpus({{Kind::kNoDriver, "a: no driver"}}), "a: no driver");
  EXPECT_EQ(problem_with_gpus(
                {{Kind::kUsable, "a, GPU 0000:3B:00.0"}, {Kind::kNoDriver, "b: no driver"}}),
            "rank 1 on b: no driver");
  EXPECT_EQ(problem_with_gpus({{Kind::kUsable, "a, GPU 0000:3B:00.0"},
                               {Kind::kUnusable, "a: 1 GPUs for 2 ranks"}}),
            "rank 1 on a: 1 GPUs for 2 ranks; start one rank for each GPU");
  EXPECT_EQ(problem_with_gpus({{Kind::kUsable, "a, GPU 0000:3B:00.0"},
                               {Kind::kUsable, "a, GPU 0000:86:00.0"},
                               {Kind::kUsable, "a, GPU 0000:3B:00.0"}}),
            "ranks 0 and 2 have the same one, a, GPU 0000:3B:00.0; start one rank for each GPU");
}

TEST(RankDevice, TheCpuIsAlwaysThere) {
  comm::SelfCommunicator alone;
  EXPECT_TRUE(select_rank_device("cpu", {}, alone).is_cpu());
}

// More ranks than any host has GPUs, and two of them on any one GPU.
TEST(RankDevice, AllRanksAnswerAlike) {
  std::vector<std::string> messages(2);
  narrowgauge::testing::run_ranks(2, [&](comm::Communicator& world) {
    const LocalRank local{500 + world.rank(), 1000};
    EXPECT_TRUE(select_rank_device("auto", local, world).is_cpu());
    try {
      select_rank_device("cuda", local, world);
      ADD_FAILURE() << "expected an error";
    } catch (const ConfigError& error) {
      messages[world.rank()] = error.what();
    }
  });
  EXPECT_EQ(messages[0].rfind("training.device: cannot use 'cuda': rank", 0), 0U) << messages[0];
  EXPECT_EQ(messages[0], messages[1]);
}

}  // namespace
}  // namespace narrowgauge::trainer
