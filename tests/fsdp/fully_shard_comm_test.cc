// What is sent, and what stays in memory: exact counts of collectives and of gathered bytes.

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>

#include "fsdp/fully_shard.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/counting_communicator.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::CollectiveLog;
using narrowgauge::testing::CountingCommunicator;
using narrowgauge::testing::run_ranks_shared;

constexpr int kBlocks = 3;

struct Sharded {
  std::shared_ptr<CollectiveLog> log;
  comm::DeviceMesh mesh;
  std::shared_ptr<ToyModel> model;
  ToyBatch batch;
};

// Runs `body` on replicate x shard ranks with a toy model whose collectives are logged; the log is
// empty when body begins.
void with_sharded_toy(int replicate, int shard, const FullyShardOptions& options,
                      const std::function<void(Sharded&)>& body) {
  run_ranks_shared(replicate * shard, [&](auto world) {
    const auto log = std::make_shared<CollectiveLog>();
    const comm::DeviceMesh mesh(std::make_shared<CountingCommunicator>(world, log), replicate,
                                shard);
    const ToySpec spec{.num_blocks = kBlocks};
    Sharded sharded{log, mesh, make_sharded_toy(spec, mesh, options),
                    slice_of_rank(toy_batch(spec, 0, 12), world->rank(), world->size())};
    log->clear();
    body(sharded);
  });
}

at::Tensor loss_of(Sharded& sharded) {
  return sharded.model->loss_sum(sharded.batch.tokens, sharded.batch.targets);
}

// Bytes of the layers' own parameters that are allocated now.
int64_t gathered_bytes(const nn::Layer& layer) {
  std::map<const void*, int64_t> bytes;
  for (const auto& parameter : layer.named_parameters()) {
    bytes[parameter.value().storage().unsafeGetStorageImpl()] =
        static_cast<int64_t>(parameter.value().storage().nbytes());
  }
  int64_t total = 0;
  for (const auto& [storage, size] : bytes) {
    total += size;
  }
  return total;
}

struct ExpectedCounts {
  std::optional<bool> reshard_after_forward;
  int64_t backward_all_gathers;
};

TEST(FullyShardComm, OneCollectiveForEachGroup) {
  for (const ExpectedCounts& expected :
       {ExpectedCounts{std::nullopt, kBlocks}, {true, kBlocks + 1}, {false, 0}}) {
    const FullyShardOptions options{.reshard_after_forward = expected.reshard_after_forward};
    with_sharded_toy(1, 2, options, [&](Sharded& sharded) {
      for (int step = 0; step < 2; ++step) {  // the first step initialises lazily
        sharded.log->clear();
        const at::Tensor loss = loss_of(sharded);
        EXPECT_EQ(sharded.log->count("all_gather"), kBlocks + 1);
        EXPECT_EQ(sharded.log->records().size(), kBlocks + 1);
        sharded.log->clear();
        loss.backward();
        EXPECT_EQ(sharded.log->count("all_gather"), expected.backward_all_gathers);
        EXPECT_EQ(sharded.log->count("reduce_scatter"), kBlocks + 1);
        EXPECT_EQ(sharded.log->records().size(), expected.backward_all_gathers + kBlocks + 1);
      }
    });
  }
}

TEST(FullyShardComm, ReshardAfterForwardCanBeSetAtRunTime) {
  for (const bool enabled : {true, false}) {
    for (const bool recurse : {true, false}) {
      with_sharded_toy(1, 2, {.reshard_after_forward = !enabled}, [&](Sharded& sharded) {
        set_reshard_after_forward(*sharded.model, enabled, recurse);
        const at::Tensor loss = loss_of(sharded);
        EXPECT_EQ(sharded.log->count("all_gather"), kBlocks + 1);
        sharded.log->clear();
        loss.backward();
        const int64_t of_blocks = (recurse ? enabled : !enabled) ? kBlocks : 0;
        EXPECT_EQ(sharded.log->count("all_gather"), of_blocks + (enabled ? 1 : 0));
        EXPECT_EQ(sharded.log->count("reduce_scatter"), kBlocks + 1);
      });
    }
  }
}

TEST(FullyShardComm, WhatIsReshardedByHandIsGatheredAgain) {
  with_sharded_toy(1, 2, {.reshard_after_forward = false}, [&](Sharded& sharded) {
    const at::Tensor loss = loss_of(sharded);
    sharded.log->clear();
    reshard(*sharded.model);
    for (const auto& block : sharded.model->blocks) {
      reshard(*block);
    }
    EXPECT_EQ(gathered_bytes(*sharded.model), 0);
    loss.backward();
    EXPECT_EQ(sharded.log->count("all_gather"), kBlocks + 1);
  });
}

TEST(FullyShardComm, ReshardToPairsGathersInPairsInBackward) {
  with_sharded_toy(1, 4, {.mp_policy = {.param_dtype = at::kBFloat16}, .reshard_after_forward = 2},
                   [&](Sharded& sharded) {
                     const at::Tensor loss = loss_of(sharded);
                     // Padded to 4 ranks, to 16 bytes a tensor: 2 * 5 -> 32, 2 -> 16, 2 * 7 -> 32,
                     // 2 -> 16 for each rank.
                     const auto block = [&] { return sharded.log->records().back().size_bytes; };
                     EXPECT_EQ(block(), 4 * (32 + 16 + 32 + 16));
                     // A quarter of each would be left of it; a half is.
                     EXPECT_EQ(gathered_bytes(*sharded.model), 0);
                     sharded.log->clear();
                     loss.backward();
                     EXPECT_EQ(sharded.log->count("all_gather"), kBlocks + 1);
                     // Of the block whose forward ended last: 4 * 5 -> 48, 4 -> 16, 4 * 7 -> 64,
                     // 4 -> 16 for each of two.
                     EXPECT_EQ(sharded.log->records()[1].size_bytes, 2 * (48 + 16 + 64 + 16));
                     // Gradients belong to all.
                     EXPECT_EQ(sharded.log->count("reduce_scatter"), kBlocks + 1);
                   });
}

TEST(FullyShardComm, ReplicateAxisAddsOneAllReduceForEachGroup) {
  with_sharded_toy(2, 2, {}, [&](Sharded& sharded) {
    loss_of(sharded).backward();
    EXPECT_EQ(sharded.log->count("reduce_scatter"), kBlocks + 1);
    EXPECT_EQ(sharded.log->count("all_reduce"), kBlocks + 1);
  });
  with_sharded_toy(2, 1, {}, [&](Sharded& sharded) {
    loss_of(sharded).backward();
    EXPECT_EQ(sharded.log->count("all_reduce"), kBlocks + 1);
    EXPECT_EQ(sharded.log->records().size(), kBlocks + 1);
  });
}

TEST(FullyShardComm, OneRankSendsNothing) {
  with_sharded_toy(1, 1, {.mp_policy = {.param_dtype = at::kBFloat16}}, [&](Sharded& sharded) {
    loss_of(sharded).backward();
    EXPECT_TRUE(sharded.log->records().empty());
  });
}

TEST(FullyShardComm, WithoutSynchronisationNothingIsReduced) {
  for (const int replicate : {1, 2}) {
    with_sharded_toy(replicate, 2, {}, [&](Sharded& sharded) {
      set_requires_gradient_sync(*sharded.model, false);
      loss_of(sharded).backward();
      EXPECT_EQ(sharded.log->count("reduce_scatter"), 0);
      EXPECT_EQ(sharded.log->count("all_reduce"), 0);
      for (const at::Tensor& local : locals_of(*sharded.model)) {
        EXPECT_FALSE(local.grad().defined());
      }
      set_requires_gradient_sync(*sharded.model, true);
      loss_of(sharded).backward();
      EXPECT_EQ(sharded.log->count("reduce_scatter"), kBlocks + 1);
    });
  }
}

TEST(FullyShardComm, DtypesAndBytesAreThePolicys) {
  const auto check = [](std::optional<at::ScalarType> reduce_dtype, at::ScalarType expected) {
    const FullyShardOptions options{
        .mp_policy = {.param_dtype = at::kBFloat16, .reduce_dtype = reduce_dtype}};
    with_sharded_toy(1, 2, options, [&](Sharded& sharded) {
      loss_of(sharded).backward();
      for (const auto& record : sharded.log->records()) {
        if (record.operation == "reduce_scatter") {
          EXPECT_EQ(record.dtype, expected);
        }
      }
      // Blocks: in [7, 5] + 7, out [5, 7] + 5. Padded to 2 ranks in bf16 and to 16 bytes a tensor:
      // 4 * 5 -> 48, 4 -> 16, 3 * 7 -> 48, 3 -> 16, for each rank.
      EXPECT_EQ(sharded.log->records()[1].operation, "all_gather");
      EXPECT_EQ(sharded.log->records()[1].size_bytes, 2 * (48 + 16 + 48 + 16));
      for (const at::Tensor& local : locals_of(*sharded.model)) {
        EXPECT_EQ(local.scalar_type(), at::kFloat);
        EXPECT_EQ(local.grad().scalar_type(), at::kFloat);
      }
    });
  };
  check(at::kFloat, at::kFloat);
  check(at::kBFloat16, at::kBFloat16);
  check(std::nullopt, at::kBFloat16);
}

TEST(FullyShardComm, OutputDtypeAndInputCast) {
  struct Probe : nn::Layer {
    at::Tensor weight;
    at::ScalarType seen = at::kByte;
    Probe() { add_parameter("weight", weight, at::zeros({4})); }
    at::Tensor operator()(const at::Tensor& x) {
      return hooked(x, [this](const at::Tensor& y) {
        seen = y.scalar_type();
        return y.mul(weight);
      });
    }
  };
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    Probe cast;
    fully_shard(cast, mesh,
                {.mp_policy = {.param_dtype = at::kBFloat16, .output_dtype = at::kDouble}});
    EXPECT_EQ(cast(at::zeros({4})).scalar_type(), at::kDouble);
    EXPECT_EQ(cast.seen, at::kBFloat16);
    EXPECT_EQ(cast.weight.scalar_type(), at::kBFloat16);
    Probe uncast;
    fully_shard(uncast, mesh,
                {.mp_policy = {.param_dtype = at::kBFloat16, .cast_forward_inputs = false}});
    EXPECT_EQ(uncast(at::zeros({4})).scalar_type(), at::kFloat);
    EXPECT_EQ(uncast.seen, at::kFloat);
  });
}

TEST(FullyShardMemory, GatheredStorageIsFreedInTime) {
  with_sharded_toy(1, 2, {}, [&](Sharded& sharded) {
    EXPECT_EQ(gathered_bytes(*sharded.model), 0);
    int64_t most = 0;
    // Between the two Linears of each block, on the way there and back.
    for (const auto& block : sharded.model->blocks) {
      block->in->register_forward_hook([&](at::Tensor y) {
        most = std::max(most, gathered_bytes(*sharded.model));
        y.register_hook(
            [&](const at::Tensor&) { most = std::max(most, gathered_bytes(*sharded.model)); });
        return y;
      });
    }
    // fp32, padded to 2 ranks. Root: [11, 5] twice. Block: [7, 5], 7, [5, 7], 5.
    const int64_t root_bytes = 4 * 2 * 12 * 5;
    const int64_t block_bytes = 4 * (8 * 5 + 8 + 6 * 7 + 6);
    const at::Tensor loss = loss_of(sharded);
    EXPECT_EQ(most, root_bytes + block_bytes);
    EXPECT_EQ(gathered_bytes(*sharded.model), root_bytes);  // kept: its backward comes first
    most = 0;
    loss.backward();
    EXPECT_EQ(most, root_bytes + block_bytes);
    EXPECT_EQ(gathered_bytes(*sharded.model), 0);
  });
}

TEST(FullyShardMemory, ForwardWithoutGradientsLeavesNothing) {
  for (const std::optional<bool> reshard : {std::optional<bool>(), std::optional(false)}) {
    with_sharded_toy(1, 2, {.reshard_after_forward = reshard}, [&](Sharded& sharded) {
      const at::Tensor expected = loss_of(sharded).detach();
      const c10::NoGradGuard no_grad;
      EXPECT_TRUE(loss_of(sharded).equal(expected));
      EXPECT_EQ(gathered_bytes(*sharded.model), 0);
    });
  }
}

TEST(FullyShardMemory, GatheredParametersGatherOnce) {
  with_sharded_toy(1, 2, {}, [&](Sharded& sharded) {
    const c10::NoGradGuard no_grad;
    const at::Tensor expected = loss_of(sharded);
    sharded.log->clear();
    {
      const GatheredParameters gathered(*sharded.model);
      EXPECT_EQ(sharded.log->count("all_gather"), kBlocks + 1);
      for (int i = 0; i < 3; ++i) {
        EXPECT_TRUE(loss_of(sharded).equal(expected));
      }
      EXPECT_EQ(sharded.log->records().size(), kBlocks + 1);
    }
    EXPECT_EQ(gathered_bytes(*sharded.model), 0);
    EXPECT_TRUE(loss_of(sharded).equal(expected));
  });
}

TEST(FullyShardMemory, OneRankSharesOrKeepsItsParameters) {
  with_sharded_toy(1, 1, {}, [&](Sharded& sharded) {
    const ShardedParameter first = sharded_parameters(*sharded.model)[0];
    EXPECT_EQ(sharded.model->embed_tokens->weight.data_ptr(), first.local.data_ptr());
    const at::Tensor loss = loss_of(sharded);
    loss.backward();
    EXPECT_EQ(first.local.grad().scalar_type(), at::kFloat);
  });
  with_sharded_toy(1, 1, {.mp_policy = {.param_dtype = at::kBFloat16}}, [&](Sharded& sharded) {
    loss_of(sharded).backward();
    const at::Tensor& unsharded = sharded.model->embed_tokens->weight;
    const void* before = unsharded.data_ptr();
    const at::Tensor local = sharded_parameters(*sharded.model)[0].local;
    {
      const c10::NoGradGuard no_grad;
      local.add_(1.0);
    }
    loss_of(sharded);
    EXPECT_EQ(unsharded.data_ptr(), before);
    EXPECT_TRUE(unsharded.equal(local.to(at::kBFloat16)));
  });
}

TEST(FullyShardMemory, OneRankCastsAgainOnlyAfterAChange) {
  with_sharded_toy(1, 1, {.mp_policy = {.param_dtype = at::kBFloat16}}, [&](Sharded& sharded) {
    const at::Tensor& unsharded = sharded.model->embed_tokens->weight;
    const at::Tensor local = sharded_parameters(*sharded.model)[0].local;
    const c10::NoGradGuard no_grad;
    loss_of(sharded);
    unsharded.detach().zero_();  // a trace that a cast would overwrite
    loss_of(sharded);
    EXPECT_EQ(unsharded.count_nonzero().item<int64_t>(), 0);
    local.mul_(1.0);
    loss_of(sharded);
    EXPECT_TRUE(unsharded.equal(local.to(at::kBFloat16)));
  });
}

TEST(FullyShardMemory, OneRankDoesNotCastAgainBetweenMicroBatches) {
  with_sharded_toy(1, 1, {.mp_policy = {.param_dtype = at::kBFloat16}}, [&](Sharded& sharded) {
    const at::Tensor& unsharded = sharded.model->embed_tokens->weight;
    const auto traced_forward = [&] {
      unsharded.detach().zero_();
      loss_of(sharded);
      return unsharded.count_nonzero().item<int64_t>() == 0;
    };
    set_requires_gradient_sync(*sharded.model, false);
    loss_of(sharded).backward();
    EXPECT_TRUE(traced_forward());
    set_requires_gradient_sync(*sharded.model, true);
    loss_of(sharded).backward();
    EXPECT_FALSE(traced_forward());
  });
}

TEST(FullyShardMemory, OneRankCastsAgainAfterBackwardWhateverTheOptimizerWritesThrough) {
  with_sharded_toy(1, 1, {.mp_policy = {.param_dtype = at::kBFloat16}}, [&](Sharded& sharded) {
    const at::Tensor local = sharded_parameters(*sharded.model)[0].local;
    loss_of(sharded).backward();
    for (int64_t i = 0; i < local.numel(); ++i) {
      local.mutable_data_ptr<float>()[i] = 2.0F;  // counts nowhere
    }
    loss_of(sharded);
    EXPECT_TRUE(sharded.model->embed_tokens->weight.equal(local.to(at::kBFloat16)));
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp
