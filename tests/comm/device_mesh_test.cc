#include "comm/device_mesh.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "tests/support/run_ranks.h"

namespace narrowgauge::comm {
namespace {

using narrowgauge::testing::run_ranks_shared;

void expect_error(int world_size, int replicate, int shard, const std::string& expected) {
  run_ranks_shared(world_size, [&](std::shared_ptr<Communicator> world) {
    try {
      const DeviceMesh mesh(world, replicate, shard);
      ADD_FAILURE() << "expected an error";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
  });
}

TEST(DeviceMesh, ShardAxisIsARunOfNeighbours) {
  run_ranks_shared(6, [](std::shared_ptr<Communicator> world) {
    const DeviceMesh mesh(world, 2, 3);
    EXPECT_EQ(mesh.replicate_axis().size(), 2);
    EXPECT_EQ(mesh.replicate_axis().rank(), world->rank() / 3);
    EXPECT_EQ(mesh.shard_axis().size(), 3);
    EXPECT_EQ(mesh.shard_axis().rank(), world->rank() % 3);
    EXPECT_EQ(&mesh.world(), world.get());
  });
}

TEST(DeviceMesh, MinusOneShardsOverTheRest) {
  run_ranks_shared(4, [](std::shared_ptr<Communicator> world) {
    EXPECT_EQ(DeviceMesh(world, 2, -1).shard_axis().size(), 2);
    EXPECT_EQ(DeviceMesh(world, 1, -1).shard_axis().size(), 4);
    EXPECT_EQ(DeviceMesh(world, 4, -1).shard_axis().size(), 1);
    EXPECT_EQ(DeviceMesh(world, 4, 1).replicate_axis().rank(), world->rank());
  });
}

TEST(DeviceMesh, NamesSizesThatDoNotFit) {
  expect_error(4, 2, 3, "replicate 2 x shard 3 needs 6 ranks, got 4");
  expect_error(3, 2, -1, "replicate 2 x shard -1 needs a multiple of 2 ranks, got 3");
  expect_error(1, 0, 1, "expected replicate >= 1");
  expect_error(1, 1, 0, "got replicate 1 and shard 0");
  expect_error(2, 1 << 20, 1 << 20, "needs 1099511627776 ranks, got 2");
}

}  // namespace
}  // namespace narrowgauge::comm
