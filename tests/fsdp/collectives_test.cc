#include "fsdp/collectives.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <exception>
#include <memory>
#include <utility>
#include <vector>

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

// Inline, and on a thread of its own.
std::vector<CommStreams> both_streams() {
  return {CommStreams::inline_streams(), CommStreams::thread_stream()};
}

// Of `inner`, with its collectives in `log`.
std::shared_ptr<comm::Communicator> counting(const std::shared_ptr<comm::Communicator>& inner,
                                             const std::shared_ptr<CollectiveLog>& log) {
  return std::make_shared<CountingCommunicator>(inner, log);
}

TEST(ForeachAllGather, ReproducesOddShapesOfMixedDtypesInOneCollective) {
  for (const int ranks : {1, 2, 3, 8}) {
    run_ranks_shared(ranks, [&](auto world) {
      for (const CommStreams& streams : both_streams()) {
        const auto log = std::make_shared<CollectiveLog>();
        const at::ScalarType dtypes[] = {at::kFloat, at::kBFloat16, at::kDouble};
        std::vector<AllGatherInput> inputs;
        for (size_t i = 0; i < kOddSizes.size(); ++i) {
          inputs.push_back({padded_chunk(whole(i), ranks, world->rank()), dtypes[i % 3]});
        }
        const AllGatherResult result =
            foreach_all_gather(inputs, at::kCPU, counting(world, log), streams);
        std::vector<at::Tensor> outputs;
        for (size_t i = 0; i < kOddSizes.size(); ++i) {
          std::vector<int64_t> sizes = inputs[i].tensor.sizes().vec();
          sizes[0] *= ranks;
          outputs.push_back(at::empty(sizes, dtypes[i % 3]));
        }
        result.work->wait();
        EXPECT_EQ(log->records().size(), 1U);
        foreach_all_gather_copy_out(result, outputs);
        for (size_t i = 0; i < outputs.size(); ++i) {
          EXPECT_TRUE(outputs[i].narrow(0, 0, kOddSizes[i][0]).equal(whole(i).to(dtypes[i % 3])))
              << i;
        }
      }
    });
  }
}

TEST(ForeachAllGather, NothingToGatherIsNoCollective) {
  run_ranks_shared(2, [](auto world) {
    const auto log = std::make_shared<CollectiveLog>();
    const AllGatherResult result =
        foreach_all_gather({}, at::kCPU, counting(world, log), CommStreams::inline_streams());
    result.work->wait();
    foreach_all_gather_copy_out(result, {});
    EXPECT_TRUE(log->records().empty());
  });
}

// The axes of a mesh that outlives them.
struct Axes {
  explicit Axes(const comm::DeviceMesh& mesh)
      : shard(&mesh.shard_axis(), [](auto*) {}), replicate(&mesh.replicate_axis(), [](auto*) {}) {}
  std::shared_ptr<comm::Communicator> shard;
  std::shared_ptr<comm::Communicator> replicate;
};

std::vector<at::Tensor> reduce(std::vector<at::Tensor> gradients, const ReduceSpec& spec,
                               const Axes& axes, const CommStreams& streams,
                               const std::vector<std::vector<int64_t>>& sizes = kOddSizes) {
  const ReduceResult result = foreach_reduce(std::move(gradients), sizes, spec, axes.shard,
                                             axes.replicate, at::Tensor(), streams);
  result.work->wait();
  EXPECT_EQ(result.output.scalar_type(), spec.dtype);
  return sharded_gradients(result.output, sizes, axes.shard->size(), axes.shard->rank());
}

const std::vector<std::pair<int, int>> kMeshes = {{1, 1}, {1, 3}, {2, 1}, {2, 2}, {1, 8}};

TEST(ForeachReduce, SumsOddShapesOverBothAxes) {
  for (const auto& [replicate, shard] : kMeshes) {
    run_ranks_shared(replicate * shard, [&](auto world) {
      const comm::DeviceMesh mesh(world, replicate, shard);
      for (const CommStreams& streams : both_streams()) {
        for (const bool offload : {false, true}) {
          std::vector<at::Tensor> gradients;
          for (size_t i = 0; i < kOddSizes.size(); ++i) {
            // Small integers: every sum is exact. Parameter 3 has a gradient on the last rank
            // alone.
            const bool none = i == 3 && world->rank() + 1 < world->size();
            gradients.push_back(
                none ? at::Tensor()
                     : whole(i).add(world->rank()).to(i == 1 ? at::kBFloat16 : at::kFloat));
          }
          const auto shards = reduce(
              gradients, {.dtype = at::kFloat, .divide_factor = 2.0, .offload_to_cpu = offload},
              Axes(mesh), streams);
          const double n = world->size();
          for (size_t i = 0; i < kOddSizes.size(); ++i) {
            at::Tensor sum = i == 3 ? whole(i).add(n - 1) : at::zeros(kOddSizes[i]);
            for (int rank = 0; rank < world->size() && i != 3; ++rank) {
              sum = sum.add(
                  whole(i).add(rank).to(i == 1 ? at::kBFloat16 : at::kFloat).to(at::kFloat));
            }
            const RowRange rows = row_range(kOddSizes[i][0], shard, mesh.shard_axis().rank());
            EXPECT_TRUE(shards[i].equal(sum.div(2.0).narrow(0, rows.begin, rows.size)))
                << i << shards[i] << sum;
          }
        }
      }
    });
  }
}

// Division is the mean's, the communicator's or in two steps: all the same number where it is
// exact.
TEST(ForeachReduce, DividesByAnyFactorInEveryDtype) {
  for (const auto& [replicate, shard] : kMeshes) {
    run_ranks_shared(replicate * shard, [&](auto world) {
      const comm::DeviceMesh mesh(world, replicate, shard);
      const double size = world->size();
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const double factor :
             {1.0, 2.0, 8.0, size, 2.0 * size, static_cast<double>(mesh.shard_axis().size())}) {
          // Every rank has the factor itself: the result is the number of ranks.
          const auto shards =
              reduce({at::zeros({8, 2}).add(factor)}, {.dtype = dtype, .divide_factor = factor},
                     Axes(mesh), CommStreams::inline_streams(), {{8, 2}});
          EXPECT_TRUE(shards[0]
                          .to(at::kDouble)
                          .allclose(at::zeros({shards[0].size(0), 2}, at::kDouble).add(size),
                                    1.0 / 256, 0.0))
              << dtype << factor << shards[0];
        }
      }
    });
  }
}

TEST(ForeachReduce, Float16DividesBeforeTheSumOverflows) {
  run_ranks_shared(4, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 4);
    const auto shards =
        reduce({at::zeros({4}).add(30000.0)}, {.dtype = at::kHalf, .divide_factor = 4.0},
               Axes(mesh), CommStreams::inline_streams(), {{4}});
    EXPECT_EQ(shards[0].item<float>(), 30000.0F);  // 4 x 30000 is beyond 65504
  });
}

TEST(ForeachReduce, PartialSumsWaitForTheAllReduce) {
  run_ranks_shared(4, [](auto world) {
    const auto log = std::make_shared<CollectiveLog>();
    const comm::DeviceMesh mesh(counting(world, log), 2, 2);
    const Axes axes(mesh);
    const CommStreams streams = CommStreams::thread_stream();
    log->clear();
    at::Tensor partial;
    ReduceResult result;
    for (int micro = 0; micro < 3; ++micro) {
      const bool last = micro == 2;
      result = foreach_reduce({whole(1).add(world->rank() + 10 * micro)}, {kOddSizes[1]},
                              {.dtype = at::kFloat, .divide_factor = 4.0, .all_reduce = last},
                              axes.shard, axes.replicate, partial, streams);
      result.work->wait();
      partial = result.output;
      EXPECT_EQ(log->count("reduce_scatter"), micro + 1);
      EXPECT_EQ(log->count("all_reduce"), last ? 1 : 0);
    }
    // 3 micro-batches of ranks 0 to 3.
    const at::Tensor expected = whole(1).mul(12).add(3 * 6 + 4 * 30).div(4);
    const RowRange rows = row_range(kOddSizes[1][0], 2, axes.shard->rank());
    EXPECT_TRUE(sharded_gradients(result.output, {kOddSizes[1]}, 2, axes.shard->rank())[0].equal(
        expected.narrow(0, rows.begin, rows.size)));
  });
}

TEST(ForeachReduce, ReducesIn16BitsWhereTold) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const auto shards =
        reduce({at::Tensor(), at::zeros({2}, at::kBFloat16).add(1.0)}, {.dtype = at::kBFloat16},
               Axes(mesh), CommStreams::inline_streams(), {{3, 2}, {2}});
    EXPECT_EQ(shards[1].sum().template item<float>(), 2.0F);
    EXPECT_THROW(reduce({}, {.dtype = at::kFloat}, Axes(mesh), CommStreams::inline_streams(), {}),
                 c10::Error);
  });
}

// A collective that fails is told where it is waited for, and the stream lives on.
TEST(ForeachAllGather, AFailureIsToldByTheWait) {
  run_ranks_shared(2, [](auto world) {
    const CommStreams streams = CommStreams::thread_stream();
    const AllGatherResult bad =
        foreach_all_gather({{at::zeros({2}).to_sparse(), at::kFloat}}, at::kCPU, world, streams);
    EXPECT_THROW(bad.work->wait(), std::exception);
    const AllGatherResult good =
        foreach_all_gather({{at::zeros({2}).add(1.0), at::kFloat}}, at::kCPU, world, streams);
    good.work->wait();
    const at::Tensor output = at::zeros({4});
    foreach_all_gather_copy_out(good, {output});
    EXPECT_EQ(output.sum().template item<float>(), 4.0F);
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp
