#include "optim/step_in_backward.h"

#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "optim/adamw.h"
#include "optim/low_bit_adam.h"
#include "tests/support/numerics.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::optim {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::run_ranks;

// Rows of 96 are cut by blocks of 256, rows of 512 are not.
const std::vector<std::vector<int64_t>> kShapes = {{64, 96}, {10, 512}, {7, 5}, {3, 2048}};

// This rank's rows, with the same values however often it is made.
ParameterGroup make_group(const std::vector<at::Tensor>& whole, comm::Communicator& ranks) {
  ParameterGroup group;
  group.weight_decay = 0.1;
  for (size_t i = 0; i < whole.size(); ++i) {
    const int64_t rows = whole[i].size(0);
    const int64_t chunk = (rows + ranks.size() - 1) / ranks.size();
    const int64_t begin = std::min(rows, chunk * ranks.rank());
    const int64_t end = std::min(rows, begin + chunk);
    group.names.push_back("p" + std::to_string(i));
    group.params.push_back(whole[i].narrow(0, begin, end - begin).clone());
    group.shards.push_back({whole[i].sizes().vec(), begin});
  }
  return group;
}

std::vector<at::Tensor> random_tensors() {
  std::vector<at::Tensor> tensors;
  for (const auto& shape : kShapes) {
    tensors.push_back(at::randn(shape));
  }
  return tensors;
}

class StepInBackwardFormats : public ::testing::TestWithParam<StateFormat> {};

INSTANTIATE_TEST_SUITE_P(All, StepInBackwardFormats,
                         ::testing::Values(StateFormat::kFloat32, StateFormat::k8bit,
                                           StateFormat::k4bit, StateFormat::kFp8));

TEST_P(StepInBackwardFormats, GivesTheBitsOfOneStepAfterBackward) {
  LowBitAdamOptions options;
  options.state_format = GetParam();
  const std::vector<at::Tensor> start = random_tensors();
  std::vector<std::vector<at::Tensor>> gradients;
  for (int step = 0; step < 4; ++step) {
    gradients.push_back(random_tensors());
  }
  for (const int size : {1, 2, 3, 5}) {
    SCOPED_TRACE(size);
    run_ranks(size, [&](comm::Communicator& ranks) {
      const ParameterGroup expected = make_group(start, ranks);
      const ParameterGroup actual = make_group(start, ranks);
      LowBitAdam after({expected}, options, &ranks);
      StepInBackward in_backward({actual}, [&](std::vector<ParameterGroup> groups) {
        return std::make_unique<LowBitAdam>(std::move(groups), options, &ranks);
      });
      const std::vector<std::string>& names = in_backward.names();
      if (size == 1 || GetParam() == StateFormat::kFloat32) {
        EXPECT_EQ(names.size(), kShapes.size());
      } else if (size > 2) {  // only the first has blocks that a boundary cuts
        EXPECT_EQ(std::count(names.begin(), names.end(), "p0"), 0);
        EXPECT_EQ(std::count(names.begin(), names.end(), "p1"), 1);
      }
      for (const auto& of_step : gradients) {
        const ParameterGroup local = make_group(of_step, ranks);
        in_backward.begin_last_backward(1e-2);
        for (size_t i = kShapes.size(); i-- > 0;) {  // as backward comes to them
          expected.params[i].mutable_grad() = local.params[i].clone();
          actual.params[i].mutable_grad() = local.params[i].clone();
          const auto at = std::find(names.begin(), names.end(), actual.names[i]);
          if (at != names.end()) {
            in_backward.gradient_ready(static_cast<size_t>(at - names.begin()));
            EXPECT_FALSE(actual.params[i].grad().defined());
          }
        }
        after.step(1e-2);
        in_backward.step(1e-2);
        in_backward.zero_grad();
      }
      for (size_t i = 0; i < kShapes.size(); ++i) {
        expect_bitwise_equal(actual.params[i], expected.params[i]);
      }
      EXPECT_EQ(in_backward.step_count(), after.step_count());
      EXPECT_EQ(in_backward.state().size(), after.state().size());
    });
  }
}

std::unique_ptr<Optimizer> make_adamw(std::vector<ParameterGroup> groups) {
  return std::make_unique<AdamW>(std::move(groups), AdamOptions{});
}

TEST(StepInBackward, WaitsForTheLastBackwardAndTakesWhatItHasNotSeen) {
  const at::Tensor expected = at::randn({100});
  const at::Tensor param = expected.clone();
  const at::Tensor first = at::randn({100});
  const at::Tensor second = at::randn({100});
  const std::unique_ptr<Optimizer> after = make_adamw({{{"p"}, {expected}}});
  StepInBackward in_backward({{{"p"}, {param}}}, make_adamw);
  for (const bool calls : {true, false}) {
    param.mutable_grad() = first.clone();
    in_backward.gradient_ready(0);  // of a micro-batch that is not the last
    ASSERT_TRUE(param.grad().defined());
    param.grad().add_(second);
    in_backward.begin_last_backward(1e-2);
    if (calls) {
      in_backward.gradient_ready(0);
      EXPECT_FALSE(param.grad().defined());
    }
    in_backward.step(1e-2);
    in_backward.zero_grad();
    expected.mutable_grad() = first.add(second);
    after->step(1e-2);
    expect_bitwise_equal(param, expected);
  }
}

TEST(StepInBackward, KeepsTheNormsOfWhatIsGone) {
  const at::Tensor param = at::randn({10});
  StepInBackward optimizer({{{"p"}, {param}}}, make_adamw);
  const at::Tensor gradient = at::randn({10});
  for (int step = 0; step < 2; ++step) {
    optimizer.begin_last_backward(1e-3);
    param.mutable_grad() = gradient.clone();
    optimizer.gradient_ready(0);
    ASSERT_EQ(optimizer.applied_gradient_norms().size(), 1U);
    EXPECT_EQ(optimizer.applied_gradient_norms()[0].item<float>(),
              at::linalg_vector_norm(gradient).item<float>());
    optimizer.step(1e-3);
  }
}

TEST(StepInBackward, RefusesClippingAndASecondGradient) {
  const at::Tensor param = at::randn({10});
  StepInBackward optimizer({{{"p"}, {param}}}, make_adamw);
  EXPECT_THROW(optimizer.step(1e-3, 0.5), c10::Error);
  optimizer.begin_last_backward(1e-3);
  param.mutable_grad() = at::randn({10});
  optimizer.gradient_ready(0);
  param.mutable_grad() = at::randn({10});
  EXPECT_THROW(optimizer.gradient_ready(0), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::optim
