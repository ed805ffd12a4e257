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

void round_trips_at_every_pair_of_world_sizes(const MakeOptimizer& make) {
  Tensors straight;
  run_ranks(1, [&](comm::Communicator& communicator) {
    const Rank rank(make, communicator);
    rank.steps(1, 5);
    rank.add_to(straight);
  });
  for (const int before : {1, 2, 3, 4}) {
    const data::TemporaryDirectory directory;
    const std::filesystem::path store = std::filesystem::path(directory.path()) / "checkpoints";
    Tensors saved;
    std::mutex mutex;
    run_ranks(before, [&](comm::Communicator& communicator) {
      const Rank rank(make, communicator);
      rank.steps(1, 3);
      save_run(store, {3, 30, 1, 1}, rank.parameters, *rank.optimizer, {}, 0, communicator);
      const std::lock_guard<std::mutex> lock(mutex);
      rank.add_to(saved);
    });
    for (const int after : {1, 2, 3, 4, 8}) {
      SCOPED_TRACE(std::to_string(before) + " ranks, then " + std::to_string(after));
      Tensors loaded;
      Tensors ended;
      run_ranks(after, [&](comm::Communicator& communicator) {
        const Rank rank(make, communicator);
        const RunState state = load_run(*find_checkpoint(store, -1, communicator), {0, 0, 1, 1},
                                        rank.parameters, *rank.optimizer, {});
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
  round_trips_at_every_pair_of_world_sizes(low_bit(optim::StateFormat::kFloat32));
}

TEST(RunCheckpoint, EightBitStates) {
  round_trips_at_every_pair_of_world_sizes(low_bit(optim::StateFormat::k8bit));
}

TEST(RunCheckpoint, FourBitStates) {
  round_trips_at_every_pair_of_world_sizes(low_bit(optim::StateFormat::k4bit));
}

TEST(RunCheckpoint, Fp8States) {
  round_trips_at_every_pair_of_world_sizes(low_bit(optim::StateFormat::kFp8));
}

TEST(RunCheckpoint, Bfloat16States) {
  round_trips_at_every_pair_of_world_sizes(low_bit(optim::StateFormat::kBFloat16));
}

TEST(RunCheckpoint, Muon) {
  round_trips_at_every_pair_of_world_sizes([](std::vector<optim::ParameterGroup> groups,
                                              comm::Communicator& communicator) {
    return std::make_unique<optim::Muon>(std::move(groups), optim::MuonOptions{}, &communicator);
  });
}

}  // namespace
}  // namespace narrowgauge::trainer
