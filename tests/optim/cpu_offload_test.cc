#include "optim/cpu_offload.h"

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "optim/adamw.h"
#include "optim/low_bit_adam.h"
#include "tests/support/numerics.h"
#include "tests/support/run_ranks.h"

// On the CPU the copies are plain ones; what is tested is what the optimizer sees. The same on a
// GPU: cpu_offload_gpu_test.cc.
namespace narrowgauge::optim {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

std::unique_ptr<Optimizer> make_adamw(ParameterGroup group) {
  return std::make_unique<AdamW>(std::vector<ParameterGroup>{std::move(group)}, AdamOptions{});
}

ParameterGroup group_of(const std::vector<at::Tensor>& params) {
  ParameterGroup group;
  for (size_t i = 0; i < params.size(); ++i) {
    group.names.push_back("p" + std::to_string(i));
    group.params.push_back(params[i]);
  }
  group.weight_decay = 0.1;
  return group;
}

struct Pair {
  std::vector<at::Tensor> direct;
  std::vector<at::Tensor> offloaded;
  Pair() {
    for (const int64_t size : {5, 4096, 10000}) {
      direct.push_back(at::randn({size}));
      offloaded.push_back(direct.back().clone());
    }
  }
  // Two micro-batches are accumulated, as backward does.
  void accumulate_gradients() const {
    for (size_t i = 0; i < direct.size(); ++i) {
      const at::Tensor gradient = at::randn(direct[i].sizes());
      for (const at::Tensor& param : {direct[i], offloaded[i]}) {
        param.mutable_grad() = gradient.clone();
        param.grad().add_(gradient, 0.5);
      }
    }
  }
  void expect_equal() const {
    for (size_t i = 0; i < direct.size(); ++i) {
      expect_bitwise_equal(offloaded[i], direct[i]);
    }
  }
};

TEST(CpuOffload, AccumulatedAndClippedGradientsGiveTheStepsOfTheOptimizerItself) {
  const Pair pair;
  AdamW direct({group_of(pair.direct)}, {});
  CpuOffload offloaded({group_of(pair.offloaded)}, make_adamw);
  for (int step = 0; step < 4; ++step) {
    pair.accumulate_gradients();
    direct.step(1e-2, 0.3);
    offloaded.step(1e-2, 0.3);
    pair.expect_equal();
    offloaded.zero_grad();
    EXPECT_FALSE(pair.offloaded[0].grad().defined());
  }
  EXPECT_EQ(offloaded.step_count(), 4);
}

TEST(CpuOffload, ParametersWithoutGradientKeepTheirValueAndTheCountOfSteps) {
  const Pair pair;
  AdamW direct({group_of(pair.direct)}, {});
  CpuOffload offloaded({group_of(pair.offloaded)}, make_adamw);
  for (int step = 0; step < 3; ++step) {
    pair.accumulate_gradients();
    if (step == 1) {
      pair.direct[1].mutable_grad() = at::Tensor();
      pair.offloaded[1].mutable_grad() = at::Tensor();
    }
    direct.step(1e-2);
    offloaded.step(1e-2);
    pair.expect_equal();
  }
}

TEST(CpuOffload, GoesOnFromALoadedState) {
  const Pair pair;
  AdamW direct({group_of(pair.direct)}, {});
  pair.accumulate_gradients();
  direct.step(1e-2);
  // Loading writes parameters and state in place, after the optimizer has been made and has run.
  CpuOffload offloaded({group_of(pair.offloaded)}, make_adamw);
  offloaded.step(0.7);
  const auto saved = direct.state();
  const auto loaded = offloaded.state();
  ASSERT_EQ(saved.size(), loaded.size());
  for (size_t i = 0; i < saved.size(); ++i) {
    EXPECT_EQ(saved[i].name, loaded[i].name);
    loaded[i].local.copy_(saved[i].local);
  }
  for (size_t i = 0; i < pair.direct.size(); ++i) {
    pair.offloaded[i].copy_(pair.direct[i]);
  }
  offloaded.set_step_count(direct.step_count());
  pair.accumulate_gradients();
  direct.step(1e-2);
  offloaded.step(1e-2);
  pair.expect_equal();
}

TEST(CpuOffload, ShardsOfSeveralRanksWithSharedBlocks) {
  const at::Tensor start = at::randn({30, 300});
  const at::Tensor gradient = at::randn({30, 300});
  const auto options = LowBitAdamOptions{};
  const auto trained = [&](int size, bool is_offloaded) {
    const at::Tensor whole = start.clone();
    narrowgauge::testing::run_ranks(size, [&](comm::Communicator& communicator) {
      const int64_t rows = 30 / size;
      const int64_t begin = rows * communicator.rank();
      const at::Tensor param = start.narrow(0, begin, rows).clone();
      ParameterGroup group{{"p"}, {param}, 1.0, 0.1, {{{30, 300}, begin}}};
      const auto make = [&](ParameterGroup one) -> std::unique_ptr<Optimizer> {
        return std::make_unique<LowBitAdam>(std::vector<ParameterGroup>{std::move(one)}, options,
                                            &communicator);
      };
      const std::unique_ptr<Optimizer> optimizer =
          is_offloaded ? std::make_unique<CpuOffload>(std::vector<ParameterGroup>{group}, make)
                       : make(group);
      for (int step = 0; step < 3; ++step) {
        param.mutable_grad() = gradient.narrow(0, begin, rows);
        optimizer->step(1e-2);
      }
      whole.narrow(0, begin, rows).copy_(param);
    });
    return whole;
  };
  const at::Tensor expected = trained(1, false);
  for (const int size : {1, 2, 3}) {
    expect_bitwise_equal(trained(size, true), expected);
  }
}

}  // namespace
}  // namespace narrowgauge::optim
