// AdamW on a GPU gives the CPU's bits.

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <limits>

#include "optim/adamw.h"
#include "tests/support/numerics.h"

namespace narrowgauge::optim {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

// Parameters of these sizes on `device`, in two groups with different rates, beside their
// optimizer.
struct Run {
  Run(const std::vector<at::Tensor>& initial, at::Device device, AdamOptions options) {
    ParameterGroup decayed{{}, {}, 1.0, 0.1};
    ParameterGroup plain{{}, {}, 0.5, 0.0};
    for (size_t i = 0; i < initial.size(); ++i) {
      params.push_back(initial[i].to(device, /*non_blocking=*/false, /*copy=*/true));
      ParameterGroup& group = i % 2 == 0 ? decayed : plain;
      group.names.push_back(std::to_string(i));
      group.params.push_back(params.back());
    }
    optimizer = std::make_unique<AdamW>(std::vector{decayed, plain}, options);
  }

  void step(const std::vector<at::Tensor>& grads, double lr, double scale) {
    for (size_t i = 0; i < params.size(); ++i) {
      params[i].mutable_grad() = grads[i].to(params[i].device());
    }
    optimizer->step(lr, scale);
  }

  std::vector<at::Tensor> params;
  std::unique_ptr<AdamW> optimizer;
};

void expect_equal_runs(const std::vector<int64_t>& sizes, AdamOptions options,
                       at::ScalarType grad_dtype = at::kFloat) {
  std::vector<at::Tensor> initial;
  for (const int64_t size : sizes) {
    initial.push_back(at::randn({size}));
  }
  Run cpu(initial, at::kCPU, options);
  Run gpu(initial, {at::kCUDA, 0}, options);
  for (int step = 0; step < 3; ++step) {
    std::vector<at::Tensor> grads;
    for (const int64_t size : sizes) {
      grads.push_back(at::randn({size}).mul(step == 1 ? 1e-20 : 1.0).to(grad_dtype));
    }
    cpu.step(grads, 1e-3 * (step + 1), 0.37);
    gpu.step(grads, 1e-3 * (step + 1), 0.37);
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    expect_bitwise_equal(gpu.params[i], cpu.params[i]);
  }
  const auto cpu_state = cpu.optimizer->state();
  const auto gpu_state = gpu.optimizer->state();
  for (size_t i = 0; i < cpu_state.size(); ++i) {
    EXPECT_EQ(gpu_state[i].name, cpu_state[i].name);
    expect_bitwise_equal(gpu_state[i].local, cpu_state[i].local);
  }
}

TEST(AdamWOnGpu, HasTheBitsOfTheCpu) {
  expect_equal_runs({1, 7, 8, 9, 31, 4096, 8191, 8192, 8193, 100003}, {});
  expect_equal_runs({1003, 64}, {0.4, 0.95, 1e-6});  // the other form of lerp
}

TEST(AdamWOnGpu, NarrowGradientsAreReadAsTheyAre) {
  expect_equal_runs({1, 7, 8, 9, 31, 4096, 8193, 100003}, {}, at::kBFloat16);
}

TEST(AdamWOnGpu, AdamToo) {
  expect_equal_runs({9, 8193, 100003}, {.decoupled_weight_decay = false});
}

TEST(AdamWOnGpu, ManyTensorsTakeSeveralLaunches) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < 150; ++i) {
    sizes.push_back(1 + 37 * i);
  }
  expect_equal_runs(sizes, {});
}

TEST(AdamWOnGpu, UnalignedParametersToo) {
  const at::Tensor whole = at::randn({1001}, at::kCUDA);
  const at::Tensor copy = whole.narrow(0, 1, 1000).cpu();
  const at::Tensor grad = at::randn({1000});
  const at::Tensor view = whole.narrow(0, 1, 1000);
  for (const at::Tensor& param : {view, copy}) {
    AdamW optimizer({{{"p"}, {param}, 1.0, 0.1}}, {});
    param.mutable_grad() = grad.to(param.device());
    optimizer.step(1e-2);
  }
  expect_bitwise_equal(view, copy);
}

}  // namespace
}  // namespace narrowgauge::optim
