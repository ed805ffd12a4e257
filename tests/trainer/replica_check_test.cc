#include "trainer/replica_check.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

#include "tests/support/run_ranks.h"

namespace narrowgauge::trainer {
namespace {

using narrowgauge::testing::run_ranks_shared;

// The state of one rank of replicate x shard: a shard each, and what all hold.
struct State {
  NamedBuffers of_shard;
  NamedBuffers of_run;
  explicit State(int shard) {
    of_shard = {{"model.w", at::arange(1000.0).add(shard)},
                {"model.w_bf16", at::arange(64.0).add(shard).to(at::kBFloat16)},
                {"optimizer.w.exp_avg.codes", at::full({300}, shard, at::kByte)},
                {"model.empty", at::zeros({0, 4})}};
    of_run = {{"guard.counts", at::zeros({4}, at::kLong)}};
  }
};

void flip_bit(const at::Tensor& tensor, int64_t bit) {
  static_cast<uint8_t*>(tensor.mutable_data_ptr())[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
}

// What the check after step 20 says on each rank when `break_state` has had its way with it, all
// being well after step 10.
std::set<std::string> messages(int replicate, int shard,
                               const std::function<void(int rank, State&)>& break_state) {
  std::set<std::string> said;
  std::mutex mutex;
  run_ranks_shared(replicate * shard, [&](const std::shared_ptr<comm::Communicator>& world) {
    const comm::DeviceMesh mesh(world, replicate, shard);
    ReplicaCheck check(mesh, 10);
    State state(mesh.shard_axis().rank());
    check.check(10, state.of_shard, state.of_run);
    break_state(world->rank(), state);
    std::string text = "nothing";
    try {
      check.check(20, state.of_shard, state.of_run);
    } catch (const std::runtime_error& error) {
      text = error.what();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    said.insert(text);
  });
  return said;
}

TEST(ReplicaCheck, EqualStateIsEqual) {
  for (const auto& [replicate, shard] : {std::pair{1, 1}, {1, 3}, {2, 1}, {2, 2}, {3, 2}}) {
    EXPECT_EQ(messages(replicate, shard, [](int, State&) {}), std::set<std::string>{"nothing"});
  }
}

TEST(ReplicaCheck, OneFlippedBitOfOneRankIsFoundAndNamedOnAllRanks) {
  for (const auto& [replicate, shard] : {std::pair{3, 1}, {3, 2}, {4, 2}}) {
    const int world = replicate * shard;
    for (int broken = 0; broken < world; ++broken) {
      for (size_t tensor = 0; tensor < 3; ++tensor) {
        std::string name;
        const auto said = messages(replicate, shard, [&](int rank, State& state) {
          if (rank == broken) {
            const auto& [its_name, values] = state.of_shard[tensor];
            name = its_name;
            flip_bit(values, static_cast<int64_t>(values.nbytes()) * 8 - 1 - broken);
          }
        });
        ASSERT_EQ(said.size(), 1U);  // the same words on every rank
        EXPECT_NE(said.begin()->find("step 20: state that ought to be equal is not: " + name +
                                     " on rank " + std::to_string(broken) + " differs from ranks "),
                  std::string::npos)
            << *said.begin();
        EXPECT_NE(said.begin()->find("the check after step 10 passed"), std::string::npos);
      }
    }
  }
}

TEST(ReplicaCheck, OfTwoReplicasNoneIsAccused) {
  const auto said = messages(2, 2, [](int rank, State& state) {
    if (rank == 3) {
      flip_bit(state.of_shard[0].second, 5);
    }
  });
  ASSERT_EQ(said.size(), 1U);
  EXPECT_NE(said.begin()->find("model.w differs between ranks 1 and 3"), std::string::npos)
      << *said.begin();
}

TEST(ReplicaCheck, ShardsWithoutReplicasMayDifferButTheRunMayNot) {
  const auto shards = messages(1, 3, [](int rank, State& state) {
    if (rank == 1) {
      flip_bit(state.of_shard[0].second, 5);
    }
  });
  EXPECT_EQ(shards, std::set<std::string>{"nothing"});
  const auto run = messages(1, 3, [](int rank, State& state) {
    if (rank == 1) {
      flip_bit(state.of_run[0].second, 70);
    }
  });
  ASSERT_EQ(run.size(), 1U);
  EXPECT_NE(run.begin()->find("guard.counts on rank 1 differs from ranks 0 and 2"),
            std::string::npos)
      << *run.begin();
}

TEST(ReplicaCheck, IsDueAtItsIntervalOnSeveralRanks) {
  run_ranks_shared(2, [](const std::shared_ptr<comm::Communicator>& world) {
    const comm::DeviceMesh mesh(world, 2, 1);
    EXPECT_TRUE(ReplicaCheck(mesh, 10).is_due(20));
    EXPECT_FALSE(ReplicaCheck(mesh, 10).is_due(21));
    EXPECT_FALSE(ReplicaCheck(mesh, 0).is_due(20));
  });
  run_ranks_shared(1, [](const std::shared_ptr<comm::Communicator>& world) {
    EXPECT_FALSE(ReplicaCheck(comm::DeviceMesh(world, 1, 1), 10).is_due(20));
  });
}

}  // namespace
}  // namespace narrowgauge::trainer
