#include "trainer/run_checkpoint.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "checkpoint/checkpoint_saver.h"
#include "comm/device_mesh.h"
#include "optim/low_bit_adam.h"
#include "optim/muon.h"
#include "tests/data/temporary_directory.h"
#include "tests/support/numerics.h"
#include "tests/support/run_ranks.h"

// What is saved at one world size is what is loaded at any other: every parameter and every state,
// bit for bit, and the steps that follow.
namespace narrowgauge::trainer {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::run_ranks;
using narrowgauge::testing::run_ranks_shared;
using Tensors = std::map<std::string, at::Tensor>;
using MakeOptimizer = std::function<std::unique_ptr<optim::Optimizer>(
    std::vector<optim::ParameterGroup>, comm::Communicator&)>;

// Rows of part of a block, of one and a half blocks, odd rows, few elements.
const std::vector<std::vector<int64_t>> kShapes = {{64, 96}, {20, 384}, {128, 77}, {5, 7}};

at::Tensor random(const std::vector<int64_t>& sizes, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(sizes, generator);
}

at::Tensor as_bytes(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat8_e4m3fn ? x.view(at::kByte) : x;
}

struct Rank {
  std::vector<fsdp::ShardedParameter> parameters;
  std::unique_ptr<optim::Optimizer> optimizer;

  Rank(const MakeOptimizer& make, comm::Communicator& communicator) {
    optim::ParameterGroup group;
    group.weight_decay = 0.1;
    for (size_t i = 0; i < kShapes.size(); ++i) {
      const int64_t rows = kShapes[i][0];
      const int64_t chunk = (rows + communicator.size() - 1) / communicator.size();
      const int64_t begin = std::min(rows, chunk * communicator.rank());
      const int64_t end = std::min(rows, begin + chunk);
      const at::Tensor local = random(kShapes[i], i).narrow(0, begin, end - begin).clone();
      parameters.push_back({"p" + std::to_string(i), local, kShapes[i], begin});
      group.names.push_back(parameters.back().fqn);
      group.params.push_back(local);
      group.shards.push_back({kShapes[i], begin});
    }
    optimizer = make({group}, communicator);
  }

  void steps(int from, int to) const {
    for (int step = from; step <= to; ++step) {
      for (size_t i = 0; i < parameters.size(); ++i) {
        parameters[i].local.mutable_grad() =
            random(kShapes[i], 1000 * i + step)
                .narrow(0, parameters[i].row_begin, parameters[i].local.size(0));
      }
      optimizer->step(1e-2);
    }
  }

  // Adds this rank's rows to `whole`; copies of a row must be equal.
  void add_to(Tensors& whole) const {
    const auto put = [&](const std::string& name, const at::Tensor& local,
                         const std::vector<int64_t>& sizes, int64_t begin, int64_t num_shared) {
      if (!whole.contains(name)) {
        whole[name] = at::zeros(sizes, local.options());
      }
      const at::Tensor rows = whole[name].narrow(0, begin, local.size(0));
      rows.narrow(0, num_shared, local.size(0) - num_shared)
          .copy_(local.narrow(0, num_shared, local.size(0) - num_shared));
    };
    for (const fsdp::ShardedParameter& parameter : parameters) {
      put(parameter.fqn, parameter.local, parameter.global_sizes, parameter.row_begin, 0);
    }
    for (const optim::StateTensor& state : optimizer->state()) {
      put(state.name, state.local, state.global_sizes, state.row_begin, state.num_shared_rows);
    }
  }
};

void expect_equal(const Tensors& actual, const Tensors& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    SCOPED_TRACE(name);
    expect_bitwise_equal(as_bytes(actual.at(name)), as_bytes(tensor));
  }
}

// Replicas x shards.
struct Layout {
  int replicas;
  int shards;
  int world_size() const { return replicas * shards; }
};
constexpr Layout kLayouts[] = {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {1, 8}, {2, 2}, {4, 2}, {2, 4}};

// As an amax history: on every rank, of no parameter.
NamedBuffers history(double value) {
  return {{"float8.amax_history", random({3, 16}, 99).mul(value)}};
}

std::string name_of(const Layout& layout) {
  return std::to_string(layout.replicas) + " x " + std::to_string(layout.shards);
}

void round_trips_at_every_pair_of_layouts(const MakeOptimizer& make) {
  Tensors straight;
  run_ranks(1, [&](comm::Communicator& communicator) {
    const Rank rank(make, communicator);
    rank.steps(1, 5);
    rank.add_to(straight);
  });
  for (const Layout& before : kLayouts) {
    const data::TemporaryDirectory directory;
    const std::filesystem::path store = std::filesystem::path(directory.path()) / "checkpoints";
    Tensors saved;
    std::mutex mutex;
    run_ranks_shared(before.world_size(), [&](std::shared_ptr<comm::Communicator> world) {
      comm::DeviceMesh mesh(world, before.replicas, before.shards);
      const Rank rank(make, mesh.shard_axis());
      rank.steps(1, 3);
      const RunSnapshot snapshot =
          snapshot_run({3, 30, 1, 1}, TrainConfig{}, rank.parameters, *rank.optimizer, history(2));
      checkpoint::save_checkpoint(store, snapshot.step, snapshot.chunks, snapshot.state_json,
                                  *world);
      const std::lock_guard<std::mutex> lock(mutex);
      rank.add_to(saved);
    });
    for (const Layout& after : kLayouts) {
      SCOPED_TRACE(name_of(before) + " ranks, then " + name_of(after));
      Tensors loaded;
      Tensors ended;
      run_ranks_shared(after.world_size(), [&](std::shared_ptr<comm::Communicator> world) {
        comm::DeviceMesh mesh(world, after.replicas, after.shards);
        const Rank rank(make, mesh.shard_axis());
        std::vector<std::string> notes;
        const NamedBuffers buffers = history(0);
        const RunState state =
            load_run(*find_checkpoint(store, -1, *world), {0, 0, 1, 1}, TrainConfig{},
                     rank.parameters, *rank.optimizer, buffers, notes);
        expect_bitwise_equal(buffers[0].second, history(2)[0].second);
        EXPECT_EQ(notes, std::vector<std::string>());
        EXPECT_EQ(state.step, 3);
        EXPECT_EQ(rank.optimizer->step_count(), 3);
        {
          const std::lock_guard<std::mutex> lock(mutex);
          rank.add_to(loaded);
        }
        rank.steps(4, 5);
        const std::lock_guard<std::mutex> lock(mutex);
        rank.add_to(ended);
      });
      expect_equal(loaded, saved);
      expect_equal(ended, straight);
    }
  }
}

MakeOptimizer low_bit(optim::StateFormat format) {
  return [format](std::vector<optim::ParameterGroup> groups, comm::Communicator& communicator) {
    optim::LowBitAdamOptions options;
    options.state_format = format;
    return std::make_unique<optim::LowBitAdam>(std::move(groups), options, &communicator);
  };
}

TEST(RunCheckpoint, Fp32States) {
  round_trips_at_every_pair_of_layouts(low_bit(optim::StateFormat::kFloat32));
}

TEST(RunCheckpoint, EightBitStates) {
  round_trips_at_every_pair_of_layouts(low_bit(optim::StateFormat::k8bit));
}

TEST(RunCheckpoint, FourBitStates) {
  round_trips_at_every_pair_of_layouts(low_bit(optim::StateFormat::k4bit));
}

TEST(RunCheckpoint, Fp8States) {
  round_trips_at_every_pair_of_layouts(low_bit(optim::StateFormat::kFp8));
}

TEST(RunCheckpoint, Bfloat16States) {
  round_trips_at_every_pair_of_layouts(low_bit(optim::StateFormat::kBFloat16));
}

// What may not change unless it is allowed, and what is told.
TEST(RunCheckpoint, ChangesAreToldOrRefused) {
  const data::TemporaryDirectory directory;
  const std::filesystem::path store = std::filesystem::path(directory.path()) / "checkpoints";
  run_ranks(1, [&](comm::Communicator& communicator) {
    const Rank rank(low_bit(optim::StateFormat::kFloat32), communicator);
    const RunSnapshot snapshot =
        snapshot_run({1, 10, 8, 500}, TrainConfig{}, rank.parameters, *rank.optimizer, {});
    checkpoint::save_checkpoint(store, 1, snapshot.chunks, snapshot.state_json, communicator);
    const auto load = [&](const TrainConfig& config, const RunState& expected) {
      std::vector<std::string> notes;
      load_run(store / "step-00000001", expected, config, rank.parameters, *rank.optimizer, {},
               notes);
      return notes;
    };
    const RunState same = {0, 0, 8, 500};
    TrainConfig config;
    EXPECT_EQ(load(config, same), std::vector<std::string>());
    config.optimizer.lr = 0.5;
    config.training.steps = 123;
    EXPECT_EQ(load(config, same),
              (std::vector<std::string>{"training.steps: 10000 -> 123; the learning rate follows "
                                        "the new length from here on",
                                        "optimizer.lr: 8.0e-04 -> 0.5"}));
    config.training.seed = 7;
    EXPECT_THROW(load(config, same), ConfigError);
    config.checkpoint.allow_changes = {"training.seed"};
    EXPECT_EQ(load(config, same).size(), 3U);
    EXPECT_THROW(load(config, {0, 0, 16, 500}), ConfigError);
    EXPECT_THROW(load(config, {0, 0, 8, 501}), ConfigError);
    config.checkpoint.allow_changes = {"training.seed", "training.global_batch_size", "data.train"};
    EXPECT_EQ(load(config, {0, 0, 16, 501}).size(), 5U);
    config.checkpoint.allow_changes.push_back("data.trian");
    EXPECT_THROW(load(config, same), ConfigError);
  });
}

TEST(RunCheckpoint, Muon) {
  round_trips_at_every_pair_of_layouts([](std::vector<optim::ParameterGroup> groups,
                                          comm::Communicator& communicator) {
    return std::make_unique<optim::Muon>(std::move(groups), optim::MuonOptions{}, &communicator);
  });
}

}  // namespace
}  // namespace narrowgauge::trainer
