// The state of parameters on a GPU in the CPU's memory: the steps of the optimizer itself.

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "optim/adamw.h"
#include "optim/cpu_offload.h"
#include "optim/low_bit_adam.h"
#include "tests/support/numerics.h"

namespace narrowgauge::optim {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

using Make = std::unique_ptr<Optimizer> (*)(ParameterGroup);

std::unique_ptr<Optimizer> make_adamw(ParameterGroup group) {
  return std::make_unique<AdamW>(std::vector{std::move(group)}, AdamOptions{});
}

std::unique_ptr<Optimizer> make_8bit(ParameterGroup group) {
  return std::make_unique<LowBitAdam>(std::vector{std::move(group)}, LowBitAdamOptions{}, nullptr);
}

ParameterGroup group_of(const std::vector<at::Tensor>& params) {
  ParameterGroup group;
  for (size_t i = 0; i < params.size(); ++i) {
    group.names.push_back(std::to_string(i));
    group.params.push_back(params[i]);
  }
  group.weight_decay = 0.1;
  return group;
}

// Gradients are made on the GPU right before the step, so that a copy that did not wait for them
// would read something else; parameters are used right after it.
void expect_steps_of_the_cpu(Make make, at::ScalarType dtype) {
  std::vector<at::Tensor> cpu;
  std::vector<at::Tensor> gpu;
  for (const int64_t size : {1, 4096, 100003, 1 << 22}) {
    cpu.push_back(at::randn({size}).to(dtype));
    gpu.push_back(cpu.back().to(at::kCUDA));
  }
  const std::unique_ptr<Optimizer> direct = make(group_of(cpu));
  CpuOffload offloaded({group_of(gpu)}, make);
  for (int step = 0; step < 5; ++step) {
    for (size_t i = 0; i < cpu.size(); ++i) {
      const at::Tensor half = at::randn(gpu[i].sizes(), at::kCUDA).to(dtype);
      gpu[i].mutable_grad() = half.clone();
      gpu[i].grad().add_(half);  // two micro-batches
      cpu[i].mutable_grad() = half.add(half).cpu();
    }
    direct->step(1e-2, 0.3);
    offloaded.step(1e-2, 0.3);
    offloaded.zero_grad();
    for (size_t i = 0; i < cpu.size(); ++i) {
      expect_bitwise_equal(gpu[i].clone().cpu(), cpu[i]);
    }
  }
  for (const StateTensor& state : offloaded.state()) {
    EXPECT_TRUE(state.local.is_cpu());
  }
}

TEST(CpuOffloadOnGpu, TakesTheStepsOfAdamW) { expect_steps_of_the_cpu(make_adamw, at::kFloat); }

TEST(CpuOffloadOnGpu, TakesTheStepsOf8BitAdamW) {
  expect_steps_of_the_cpu(make_8bit, at::kFloat);
  expect_steps_of_the_cpu(make_8bit, at::kBFloat16);
}

}  // namespace
}  // namespace narrowgauge::optim
