#include "optim/low_bit_adam.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <numeric>

#include "tests/support/numerics.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::optim {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::run_ranks;

using Tensors = std::map<std::string, at::Tensor>;

LowBitAdamOptions options_of(StateFormat format, bool stochastic = false) {
  LowBitAdamOptions options;
  options.adam.beta2 = 0.95;
  options.state_format = format;
  options.bf16_stochastic_round = stochastic;
  options.seed = 11;
  return options;
}

// Rows of this rank as fsdp shards them: ceil-sized chunks, the last ones short or empty.
std::pair<int64_t, int64_t> rows_of(int64_t rows, int size, int rank) {
  const int64_t chunk = (rows + size - 1) / size;
  const int64_t begin = std::min(rows, chunk * rank);
  return {begin, std::min(rows, begin + chunk)};
}

// Blocks that rows cut, that several ranks share, that are whole rows; odd rows; few elements.
const std::vector<std::vector<int64_t>> kShapes = {{64, 96},  {10, 768}, {4352, 3}, {8192},
                                                   {40, 100}, {128, 77}, {5, 7}};

at::Tensor gradient(size_t parameter, int step, at::ScalarType dtype) {
  at::Generator generator = at::detail::createCPUGenerator(1000 * parameter + step);
  return at::randn(kShapes[parameter], generator).mul(0.1).to(dtype);
}

at::Tensor initial(size_t parameter, at::ScalarType dtype) {
  at::Generator generator = at::detail::createCPUGenerator(7 + parameter);
  return at::randn(kShapes[parameter], generator).to(dtype);
}

// What `size` ranks hold after `steps` steps, put together: parameters and every state. Loads
// `start`, the result of an earlier run, first.
Tensors train(int size, const LowBitAdamOptions& options, at::ScalarType dtype, int steps,
              const Tensors& start = {}, int steps_before = 0) {
  Tensors whole;
  std::mutex mutex;
  run_ranks(size, [&](comm::Communicator& communicator) {
    ParameterGroup group;
    group.weight_decay = 0.1;
    for (size_t i = 0; i < kShapes.size(); ++i) {
      const auto [begin, end] = rows_of(kShapes[i][0], size, communicator.rank());
      const std::string name = "p" + std::to_string(i);
      const at::Tensor from = start.contains(name) ? start.at(name) : initial(i, dtype);
      group.names.push_back(name);
      group.params.push_back(from.narrow(0, begin, end - begin).clone());
      group.shards.push_back({kShapes[i], begin});
    }
    LowBitAdam optimizer({group}, options, &communicator);
    optimizer.set_step_count(steps_before);
    for (const StateTensor& state : optimizer.state()) {
      if (start.contains(state.name)) {
        state.local.copy_(start.at(state.name).narrow(0, state.row_begin, state.local.size(0)));
      }
    }
    for (int step = steps_before + 1; step <= steps_before + steps; ++step) {
      for (size_t i = 0; i < kShapes.size(); ++i) {
        group.params[i].mutable_grad() =
            gradient(i, step, dtype).narrow(0, group.shards[i].row_begin, group.params[i].size(0));
      }
      optimizer.step(1e-2, 0.5);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    const auto put = [&](const std::string& name, const at::Tensor& local,
                         const std::vector<int64_t>& sizes, int64_t row_begin, int64_t shared) {
      if (!whole.contains(name)) {
        whole[name] = at::zeros(sizes, local.options());
      }
      // Shared rows must be equal on both ranks; here the later writer must find them so.
      whole[name]
          .narrow(0, row_begin + shared, local.size(0) - shared)
          .copy_(local.narrow(0, shared, local.size(0) - shared));
    };
    for (size_t i = 0; i < kShapes.size(); ++i) {
      put(group.names[i], group.params[i], kShapes[i], group.shards[i].row_begin, 0);
    }
    for (const StateTensor& state : optimizer.state()) {
      put(state.name, state.local, state.global_sizes, state.row_begin, state.num_shared_rows);
    }
  });
  return whole;
}

void expect_equal(const Tensors& actual, const Tensors& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    SCOPED_TRACE(name);
    const auto bytes = [](const at::Tensor& x) {
      return x.scalar_type() == at::kFloat8_e4m3fn ? x.view(at::kByte) : x;
    };
    expect_bitwise_equal(bytes(actual.at(name)), bytes(tensor));
  }
}

class LowBitAdamFormats : public ::testing::TestWithParam<StateFormat> {};

INSTANTIATE_TEST_SUITE_P(All, LowBitAdamFormats,
                         ::testing::Values(StateFormat::kFloat32, StateFormat::kBFloat16,
                                           StateFormat::k8bit, StateFormat::k4bit,
                                           StateFormat::kFp8));

TEST_P(LowBitAdamFormats, BitsDoNotDependOnTheWorldSize) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const LowBitAdamOptions options = options_of(GetParam(), dtype == at::kBFloat16);
    const Tensors one = train(1, options, dtype, 4);
    for (const int size : {2, 3, 4, 7}) {
      SCOPED_TRACE(size);
      expect_equal(train(size, options, dtype, 4), one);
    }
  }
}

TEST_P(LowBitAdamFormats, GoesOnAtAnyOtherWorldSizeAsIfNothingHadBeen) {
  const LowBitAdamOptions options = options_of(GetParam(), true);
  const Tensors straight = train(1, options, at::kBFloat16, 6);
  for (const int before : {1, 2, 3, 4}) {
    const Tensors saved = train(before, options, at::kBFloat16, 3);
    for (const int after : {1, 2, 3, 4}) {
      SCOPED_TRACE(std::to_string(before) + " ranks, then " + std::to_string(after));
      expect_equal(train(after, options, at::kBFloat16, 3, saved, 3), straight);
    }
  }
}

TEST_P(LowBitAdamFormats, BitsDoNotDependOnTheNumberOfThreads) {
  const int threads_before = at::get_num_threads();
  at::set_num_threads(1);
  const Tensors one = train(1, options_of(GetParam()), at::kFloat, 2);
  at::set_num_threads(3);
  const Tensors three = train(1, options_of(GetParam()), at::kFloat, 2);
  at::set_num_threads(threads_before);
  expect_equal(three, one);
}

TEST_P(LowBitAdamFormats, StaysNearFp32Moments) {
  const Tensors fp32 = train(1, options_of(StateFormat::kFloat32), at::kFloat, 8);
  const Tensors low = train(1, options_of(GetParam()), at::kFloat, 8);
  // 8 steps of at most lr each; a broken moment would be off by about that.
  for (size_t i = 0; i < kShapes.size(); ++i) {
    const std::string name = "p" + std::to_string(i);
    const double mean = low.at(name).sub(fp32.at(name)).abs().mean().item<double>();
    EXPECT_LT(mean, GetParam() == StateFormat::k4bit ? 1e-2 : 2e-3) << name;
  }
}

LowBitAdam one_parameter(const at::Tensor& param, const LowBitAdamOptions& options,
                         double weight_decay = 0.0) {
  return LowBitAdam({{{"p"}, {param}, 1.0, weight_decay}}, options, nullptr);
}

TEST(LowBitAdam, QuantizesByTheWholeParameter) {
  const auto names = [](const std::vector<int64_t>& global, int64_t rows, StateFormat format) {
    std::vector<int64_t> local = global;
    local[0] = rows;
    LowBitAdam optimizer({{{"p"}, {at::zeros(local)}, 1.0, 0.0, {{global, 0}}}}, options_of(format),
                         nullptr);
    return optimizer.state()[0].name;
  };
  // 4,096 elements, of which this rank holds 256, or none.
  EXPECT_EQ(names({16, 256}, 1, StateFormat::k8bit), "p.exp_avg.codes");
  EXPECT_EQ(names({16, 256}, 0, StateFormat::kFp8), "p.exp_avg.codes");
  EXPECT_EQ(names({15, 256}, 15, StateFormat::k8bit), "p.exp_avg");
  EXPECT_EQ(names({33, 128}, 33, StateFormat::k8bit), "p.exp_avg");
  EXPECT_EQ(names({33, 128}, 33, StateFormat::k4bit), "p.exp_avg.codes");
}

TEST(LowBitAdam, BytesOfStateForAParameter) {
  const auto bytes = [](StateFormat format) {
    LowBitAdam optimizer = one_parameter(at::zeros({1024, 1024}), options_of(format));
    const auto state = optimizer.state();
    return std::accumulate(
               state.begin(), state.end(), 0.0,
               [](double sum, const StateTensor& x) { return sum + x.local.nbytes(); }) /
           (1024 * 1024);
  };
  EXPECT_DOUBLE_EQ(bytes(StateFormat::kFloat32), 8.0);
  EXPECT_DOUBLE_EQ(bytes(StateFormat::kBFloat16), 4.0);
  EXPECT_DOUBLE_EQ(bytes(StateFormat::k8bit), 2.0 + 8.0 / 256);
  EXPECT_DOUBLE_EQ(bytes(StateFormat::kFp8), 2.0 + 8.0 / 256);
  EXPECT_DOUBLE_EQ(bytes(StateFormat::k4bit), 1.0 + 8.0 / 128);
}

TEST(LowBitAdam, StochasticRoundingIsRightOnAverage) {
  // Plain rounding of 1 - 1e-4 to bf16 (spacing 2^-8 below 1) never moves.
  const int64_t count = 1 << 20;
  const auto mean_after_one_step = [&](bool stochastic) {
    const at::Tensor p = at::ones({count}, at::kBFloat16);
    p.mutable_grad() = at::ones({count}, at::kBFloat16);
    one_parameter(p, options_of(StateFormat::kFloat32, stochastic)).step(1e-4);
    return p.to(at::kDouble).mean().item<double>();
  };
  EXPECT_EQ(mean_after_one_step(false), 1.0);
  // Of each element the standard deviation is below sqrt(1e-4 * 2^-8); five of the mean's.
  const double deviation = std::sqrt(1e-4 * 0x1p-8) / std::sqrt(static_cast<double>(count));
  EXPECT_NEAR(mean_after_one_step(true), 1.0 - 1e-4, 5 * deviation);
}

TEST(LowBitAdam, StochasticRoundingIsUnbiasedOverAllValues) {
  const int64_t count = 100000;
  const at::Tensor x = at::rand({count}).mul(100);
  at::Tensor sum = at::zeros({count}, at::kDouble);
  const int64_t rounds = 200;
  std::vector<uint16_t> out(static_cast<size_t>(count));
  for (int64_t step = 0; step < rounds; ++step) {
    kernels::narrow_stochastic(out.data(), x.const_data_ptr<float>(), 0, count,
                               {42, static_cast<uint64_t>(step)});
    auto* sums = sum.mutable_data_ptr<double>();
    for (size_t i = 0; i < out.size(); ++i) {
      const uint32_t bits = static_cast<uint32_t>(out[i]) << 16;
      sums[i] += std::bit_cast<float>(bits);
    }
  }
  const double bias = sum.div(rounds).sub(x.to(at::kDouble)).mean().item<double>();
  // Spacing at most 0.5: variance of an element at most 1/16; the peer's own bound is 3e-5 of 100.
  EXPECT_NEAR(bias, 0.0, 5 * 0.25 / std::sqrt(static_cast<double>(count * rounds)));
}

TEST(LowBitAdam, StochasticRoundingKeepsExactValuesInfinityAndNan) {
  const std::vector<float> values = {
      0.0F,     -0.0F,     1.0F,          -1.5F,
      INFINITY, -INFINITY, std::nanf(""), std::bit_cast<float>(0x7f800001U)};
  std::vector<uint16_t> out(values.size());
  for (uint64_t step = 0; step < 50; ++step) {
    kernels::narrow_stochastic(out.data(), values.data(), 3, static_cast<int64_t>(values.size()),
                               {1, step});
    for (size_t i = 0; i < 6; ++i) {
      ASSERT_EQ(static_cast<uint32_t>(out[i]) << 16, std::bit_cast<uint32_t>(values[i])) << i;
    }
    for (size_t i = 6; i < 8; ++i) {
      const uint32_t bits = static_cast<uint32_t>(out[i]) << 16;
      ASSERT_TRUE(std::isnan(std::bit_cast<float>(bits))) << i;
    }
  }
}

TEST(LowBitAdam, RandomBitsDifferByNameAndSeed) {
  const auto rounded = [](const std::string& name, uint64_t seed) {
    const at::Tensor p = at::ones({4096}, at::kBFloat16);
    p.mutable_grad() = at::ones({4096}, at::kBFloat16);
    LowBitAdamOptions options = options_of(StateFormat::kFloat32, true);
    options.seed = seed;
    LowBitAdam({{{name}, {p}}}, options, nullptr).step(1e-3);
    return p;
  };
  expect_bitwise_equal(rounded("a", 1), rounded("a", 1));
  EXPECT_FALSE(rounded("a", 1).equal(rounded("b", 1)));
  EXPECT_FALSE(rounded("a", 1).equal(rounded("a", 2)));
}

TEST(LowBitAdam, NanStaysInItsBlock) {
  for (const StateFormat format : {StateFormat::k8bit, StateFormat::k4bit, StateFormat::kFp8}) {
    const at::Tensor p = at::ones({64, 256});
    LowBitAdam optimizer = one_parameter(p, options_of(format));
    for (int step = 0; step < 2; ++step) {
      p.mutable_grad() = at::ones({64, 256});
      p.grad()[3][5] = std::nanf("");
      optimizer.step(1e-3);
    }
    const at::Tensor is_nan = p.isnan();
    EXPECT_TRUE(is_nan[3][5].item<bool>());
    EXPECT_EQ(is_nan[2].sum().item<int64_t>() + is_nan[4].sum().item<int64_t>(), 0);
    EXPECT_LE(is_nan.sum().item<int64_t>(), block_size(format));
  }
}

TEST(LowBitAdam, ParametersWithoutGradientAreLeftAlone) {
  const at::Tensor p = at::ones({4096});
  LowBitAdam optimizer = one_parameter(p, options_of(StateFormat::k8bit), 0.1);
  optimizer.step(0.1);
  expect_bitwise_equal(p, at::ones({4096}));
  EXPECT_EQ(optimizer.step_count(), 1);
}

TEST(LowBitAdam, RefusesWhatItCanNotUpdate) {
  const LowBitAdamOptions options = options_of(StateFormat::k8bit);
  EXPECT_THROW(one_parameter(at::ones({2}, at::kDouble), options), c10::Error);
  EXPECT_THROW(one_parameter(at::ones({2, 3}).t(), options), c10::Error);
  EXPECT_THROW(LowBitAdam({{{"p"}, {at::ones({2, 3})}, 1.0, 0.0, {{{4, 3}, 3}}}}, options, nullptr),
               c10::Error);
  EXPECT_THROW(LowBitAdam({{{"p"}, {at::ones({2, 3})}, 1.0, 0.0, {{{4, 2}, 0}}}}, options, nullptr),
               c10::Error);
  const at::Tensor p = at::ones({2, 3});
  LowBitAdam optimizer = one_parameter(p, options);
  p.mutable_grad() = at::ones({2, 3}, at::kDouble).requires_grad_(false).to(at::kFloat).t();
  EXPECT_THROW(optimizer.step(0.1), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::optim
