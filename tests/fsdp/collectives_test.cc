#include "fsdp/collectives.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "comm/device_mesh.h"
#include "tests/support/counting_communicator.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::CollectiveLog;
using narrowgauge::testing::CountingCommunicator;
using narrowgauge::testing::run_ranks_shared;

const std::vector<std::vector<int64_t>> kOddSizes = {{10}, {17, 3}, {1, 5}, {3, 2, 7},
                                                     {16}, {2},     {31, 1}};

// Parameter i of a model, the same on every rank.
at::Tensor whole(size_t i) {
  const int64_t numel = c10::multiply_integers(kOddSizes[i]);
  return at::arange(numel, at::kFloat).add(100.0 * static_cast<double>(i)).view(kOddSizes[i]);
}

at::Tensor padded_chunk(const at::Tensor& tensor, int64_t num_shards, int64_t shard) {
  std::vector<int64_t> sizes = tensor.sizes().vec();
  sizes[0] = padded_rows(tensor.size(0), num_shards);
  const RowRange rows = row_range(tensor.size(0), num_shards, shard);
  const at::Tensor chunk = at::zeros(sizes);
  chunk.narrow(0, 0, rows.size).copy_(tensor.narrow(0, rows.begin, rows.size));
  return chunk;
}

TEST(RowRange, CoversAllRowsInOrderForEverySize) {
  for (int64_t rows = 0; rows < 20; ++rows) {
    for (int64_t shards = 1; shards < 9; ++shards) {
      int64_t next = 0;
      for (int64_t shard = 0; shard < shards; ++shard) {
        const RowRange range = row_range(rows, shards, shard);
        EXPECT_EQ(range.begin, next);
        EXPECT_LE(range.size, padded_rows(rows, shards));
        next += range.size;
      }
      EXPECT_EQ(next, rows);
    }
  }
}

TEST(ForeachAllGather, ReproducesOddShapesOfMixedDtypesInOneCollective) {
  for (const int ranks : {1, 2, 3, 8}) {
    run_ranks_shared(ranks, [&](auto world) {
      const auto log = std::make_shared<CollectiveLog>();
      CountingCommunicator counting(world, log);
      const at::ScalarType dtypes[] = {at::kFloat, at::kBFloat16, at::kDouble};
      std::vector<at::Tensor> inputs;
      std::vector<at::Tensor> outputs;
      for (size_t i = 0; i < kOddSizes.size(); ++i) {
        inputs.push_back(padded_chunk(whole(i), ranks, world->rank()));
        std::vector<int64_t> sizes = inputs[i].sizes().vec();
        sizes[0] *= ranks;
        outputs.push_back(at::empty(sizes, dtypes[i % 3]));
      }
      foreach_all_gather(inputs, outputs, counting);
      EXPECT_EQ(log->records().size(), 1U);
      for (size_t i = 0; i < outputs.size(); ++i) {
        EXPECT_TRUE(outputs[i].narrow(0, 0, kOddSizes[i][0]).equal(whole(i).to(dtypes[i % 3])))
            << i;
      }
    });
  }
}

TEST(ForeachAllGather, NothingToGatherIsNoCollective) {
  run_ranks_shared(2, [](auto world) {
    const auto log = std::make_shared<CollectiveLog>();
    CountingCommunicator counting(world, log);
    foreach_all_gather({}, {}, counting);
    EXPECT_TRUE(log->records().empty());
  });
}

TEST(ForeachReduce, SumsOddShapesOverBothAxes) {
  for (const auto& [replicate, shard] : {std::pair(1, 1), {1, 3}, {2, 1}, {2, 2}, {1, 8}}) {
    run_ranks_shared(replicate * shard, [&](auto world) {
      const comm::DeviceMesh mesh(world, replicate, shard);
      std::vector<at::Tensor> gradients;
      for (size_t i = 0; i < kOddSizes.size(); ++i) {
        // Small integers: every sum is exact. Parameter 3 has a gradient on the last rank alone.
        const bool none = i == 3 && world->rank() + 1 < world->size();
        gradients.push_back(
            none ? at::Tensor()
                 : whole(i).add(world->rank()).to(i == 1 ? at::kBFloat16 : at::kFloat));
      }
      const auto shards = foreach_reduce(gradients, kOddSizes, at::kFloat, 2.0, mesh.shard_axis(),
                                         mesh.replicate_axis());
      const double n = world->size();
      for (size_t i = 0; i < kOddSizes.size(); ++i) {
        at::Tensor sum = i == 3 ? whole(i).add(n - 1) : at::zeros(kOddSizes[i]);
        for (int rank = 0; rank < world->size() && i != 3; ++rank) {
          sum = sum.add(whole(i).add(rank).to(i == 1 ? at::kBFloat16 : at::kFloat).to(at::kFloat));
        }
        const RowRange rows = row_range(kOddSizes[i][0], shard, mesh.shard_axis().rank());
        EXPECT_TRUE(shards[i].equal(sum.div(2.0).narrow(0, rows.begin, rows.size)))
            << i << shards[i] << sum;
      }
    });
  }
}

TEST(ForeachReduce, UnsetReduceDtypeIsTheGradients) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const auto reduce = [&](std::vector<at::Tensor> gradients) {
      return foreach_reduce(std::move(gradients), {{3, 2}, {2}}, std::nullopt, 1.0,
                            mesh.shard_axis(), mesh.replicate_axis());
    };
    const auto shards = reduce({at::Tensor(), at::zeros({2}, at::kBFloat16).add(1.0)});
    EXPECT_EQ(shards[0].scalar_type(), at::kBFloat16);
    EXPECT_EQ(shards[1].sum().template item<float>(), 2.0F);
    EXPECT_THROW(reduce({at::Tensor(), at::Tensor()}), c10::Error);
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp
