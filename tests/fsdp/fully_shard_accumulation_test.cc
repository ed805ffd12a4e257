// Gradient accumulation with every combination of flags, against one process, with counts.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "fsdp/fully_shard.h"
#include "tests/fsdp/parity_reference.h"
#include "tests/support/counting_communicator.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::CollectiveLog;
using narrowgauge::testing::CountingCommunicator;
using narrowgauge::testing::run_ranks_shared;

constexpr int kMicroBatches = 3;
constexpr int64_t kGroups = 4;  // 3 blocks and the root

// What the micro-batches but the last do.
struct Flags {
  bool gradient_sync = true;
  bool all_reduce = true;
  bool reshard_after_backward = true;
  bool is_last_backward = true;
};

struct Counts {
  int64_t all_gathers = 0;
  int64_t reduce_scatters = 0;
  int64_t all_reduces = 0;
};

// Of a step, from what the flags mean. The root is kept after forward.
Counts expected_counts(const Flags& flags, int replicate, int shard) {
  Counts counts;
  if (shard > 1) {
    // Each micro-batch gathers every group in forward and all but the root's again in backward. One
    // that finds them gathered needs none in forward. They are not kept where the optimizer may
    // have stepped: after gradients were reduced in what was the last backward.
    counts.all_gathers = kMicroBatches * (2 * kGroups - 1);
    const bool may_step = flags.gradient_sync && flags.is_last_backward;
    if (!flags.reshard_after_backward && !may_step) {
      counts.all_gathers -= (kMicroBatches - 1) * kGroups;
    }
    counts.reduce_scatters = (flags.gradient_sync ? kMicroBatches : 1) * kGroups;
  }
  if (replicate > 1) {
    counts.all_reduces = (flags.gradient_sync && flags.all_reduce ? kMicroBatches : 1) * kGroups;
  }
  return counts;
}

std::vector<Flags> all_flags() {
  std::vector<Flags> all;
  for (int bits = 0; bits < 16; ++bits) {
    all.push_back({(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0});
  }
  return all;
}

void accumulate(ToyModel& model, const ToyBatch& mine, const Flags& flags) {
  for (int micro = 0; micro < kMicroBatches; ++micro) {
    const bool last = micro + 1 == kMicroBatches;
    set_requires_gradient_sync(model, last || flags.gradient_sync);
    set_requires_all_reduce(model, last || flags.all_reduce);
    set_reshard_after_backward(model, last || flags.reshard_after_backward);
    set_is_last_backward(model, last || flags.is_last_backward);
    const ToyBatch batch = slice_of_rank(mine, micro, kMicroBatches);
    model.loss_sum(batch.tokens, batch.targets).backward();
  }
}

// The flags choose the order of sums, in which alone the results may differ: of 48 terms in fp32.
TEST(Accumulation, EveryCombinationOfFlagsGivesTheGradientsOfOneProcess) {
  const ToyBatch batch = toy_batch({}, 0, 12);
  const auto reference = make_reference_toy({});
  reference->loss_sum(batch.tokens, batch.targets).backward();
  for (const auto& [replicate, shard] : {std::pair(1, 2), {2, 1}, {2, 2}}) {
    for (const Flags& flags : all_flags()) {
      SCOPED_TRACE(std::to_string(replicate) + "x" + std::to_string(shard) + " sync " +
                   std::to_string(flags.gradient_sync) + " all-reduce " +
                   std::to_string(flags.all_reduce) + " reshard " +
                   std::to_string(flags.reshard_after_backward) + " last " +
                   std::to_string(flags.is_last_backward));
      const Counts expected = expected_counts(flags, replicate, shard);
      run_ranks_shared(replicate * shard, [&](auto world) {
        const auto log = std::make_shared<CollectiveLog>();
        const comm::DeviceMesh mesh(std::make_shared<CountingCommunicator>(world, log), replicate,
                                    shard);
        const auto model = make_sharded_toy({}, mesh, {});
        const ToyBatch mine = slice_of_rank(batch, world->rank(), world->size());
        for (int step = 0; step < 2; ++step) {  // nothing of the first is left in the second
          log->clear();
          accumulate(*model, mine, flags);
          EXPECT_EQ(log->count("all_gather"), expected.all_gathers);
          EXPECT_EQ(log->count("reduce_scatter"), expected.reduce_scatters);
          EXPECT_EQ(log->count("all_reduce"), expected.all_reduces);
          for (const ShardedParameter& parameter : sharded_parameters(*model)) {
            at::Tensor local = parameter.local;
            ASSERT_TRUE(local.grad().defined()) << parameter.fqn;
            const at::Tensor whole = reference->named_parameters()[parameter.fqn].grad();
            EXPECT_TRUE(local.grad().allclose(whole.narrow(0, parameter.row_begin, local.size(0)),
                                              48 * 6e-8, 48 * 6e-8))
                << parameter.fqn;
            local.mutable_grad().reset();
          }
        }
      });
    }
  }
}

// Between micro-batches of one optimizer step nothing changes; after it, what was kept is old.
TEST(Accumulation, GatheredParametersThatAreKeptFollowTheOptimizer) {
  run_ranks_shared(2, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const auto resharding = make_sharded_toy({}, mesh, {});
    const auto keeping = make_sharded_toy({}, mesh, {.reshard_after_forward = false});
    set_reshard_after_backward(*keeping, false);  // also after the last micro-batch
    ToyAdam resharding_adam(locals_of(*resharding), 1e-2);
    std::vector<at::Tensor> locals = locals_of(*keeping);
    for (int step = 0; step < 3; ++step) {
      const ToyBatch batch = slice_of_rank(toy_batch({}, step, 12), world->rank(), 2);
      const at::Tensor expected = resharding->loss_sum(batch.tokens, batch.targets);
      const at::Tensor actual = keeping->loss_sum(batch.tokens, batch.targets);
      ASSERT_TRUE(actual.equal(expected)) << step;
      expected.backward();
      actual.backward();
      resharding_adam.step();
      // As an optimizer that writes through plain pointers, which no version counter sees.
      const auto updated = locals_of(*resharding);
      for (size_t i = 0; i < locals.size(); ++i) {
        std::copy_n(updated[i].const_data_ptr<float>(), updated[i].numel(),
                    locals[i].mutable_data_ptr<float>());
        locals[i].mutable_grad().reset();
      }
    }
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp
