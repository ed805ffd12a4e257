// Recomputation against keeping everything: the same operators on the same values, so every bit of
// losses and gradients must agree; and the memory it saves, counted.

#include "nn/activation_checkpoint.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "nn/initialize.h"
#include "nn/sampling.h"
#include "tests/support/live_bytes.h"
#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

constexpr int64_t kBatch = 3;
constexpr int64_t kLength = 7;

TransformerConfig small_config() {
  TransformerConfig config;
  config.vocab_size = 31;
  config.dim = 24;
  config.num_layers = 5;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.ffn_dim = 40;
  config.max_seq_len = 16;
  return config;
}

std::shared_ptr<Transformer> make_model(const TransformerConfig& config, at::ScalarType dtype) {
  auto model = std::make_shared<Transformer>(config, at::TensorOptions(dtype));
  const c10::NoGradGuard no_grad;
  for (const auto& parameter : model->named_parameters()) {
    const at::Tensor values = at::empty_like(parameter.value(), at::kFloat);
    initialize_parameter(config, 1, parameter.key(), values, 0);
    parameter.value().copy_(values);
  }
  return model;
}

std::shared_ptr<Transformer> make_model(const TransformerConfig& config, at::ScalarType dtype,
                                        const ActivationCheckpoint& options) {
  auto model = make_model(config, dtype);
  apply_activation_checkpoint(*model, options);
  return model;
}

at::Tensor tokens_of(int64_t seed) {
  at::manual_seed(seed);
  return at::randint(31, {kBatch, kLength}, at::kLong);
}

// Two micro-batches.
std::vector<at::Tensor> train(Transformer& model) {
  std::vector<at::Tensor> losses;
  for (int64_t seed = 0; seed < 2; ++seed) {
    losses.push_back(model.loss_sum(tokens_of(seed), tokens_of(seed + 10)));
    losses.back().backward();
  }
  return losses;
}

std::map<std::string, at::Tensor> gradients_of(const torch::nn::Module& model) {
  std::map<std::string, at::Tensor> gradients;
  for (const auto& parameter : model.named_parameters()) {
    if (parameter.value().grad().defined()) {
      gradients[parameter.key()] = parameter.value().grad();
    }
  }
  return gradients;
}

void expect_same_gradients(const torch::nn::Module& actual, const torch::nn::Module& expected) {
  const auto ours = gradients_of(actual);
  const auto theirs = gradients_of(expected);
  ASSERT_EQ(ours.size(), theirs.size());
  ASSERT_FALSE(theirs.empty());
  for (const auto& [name, gradient] : theirs) {
    SCOPED_TRACE(name);
    expect_bitwise_equal(ours.at(name), gradient);
  }
}

struct ModelCase {
  std::string name;
  CheckpointMode mode;
  int64_t every_nth_block;
  at::ScalarType dtype;
  bool tied;
  std::string architecture = "llama";
};

class CheckpointedModel : public ::testing::TestWithParam<ModelCase> {};

TEST_P(CheckpointedModel, HasTheBitsOfThePlainOne) {
  TransformerConfig config = small_config();
  config.tie_word_embeddings = GetParam().tied;
  config.architecture = GetParam().architecture;
  config.attention_bias = config.architecture == "qwen2";
  config.qk_norm = config.architecture == "qwen3";
  const auto plain = make_model(config, GetParam().dtype);
  const auto model =
      make_model(config, GetParam().dtype, {GetParam().mode, GetParam().every_nth_block});
  const auto expected = train(*plain);
  const auto losses = train(*model);
  for (size_t i = 0; i < losses.size(); ++i) {
    expect_bitwise_equal(losses[i], expected[i]);
  }
  expect_same_gradients(*model, *plain);
}

INSTANTIATE_TEST_SUITE_P(
    Modes, CheckpointedModel,
    ::testing::Values(
        ModelCase{"Full", CheckpointMode::kFull, 1, at::kFloat, false},
        ModelCase{"FullBf16Tied", CheckpointMode::kFull, 1, at::kBFloat16, true},
        ModelCase{"Full64", CheckpointMode::kFull, 1, at::kDouble, false},
        ModelCase{"EverySecond", CheckpointMode::kFull, 2, at::kBFloat16, false},
        ModelCase{"EveryThirdTied", CheckpointMode::kFull, 3, at::kFloat, true},
        ModelCase{"BeyondTheLast", CheckpointMode::kFull, 6, at::kFloat, false},
        ModelCase{"Selective", CheckpointMode::kSelective, 1, at::kFloat, false},
        ModelCase{"SelectiveBf16Tied", CheckpointMode::kSelective, 1, at::kBFloat16, true},
        ModelCase{"Selective64", CheckpointMode::kSelective, 1, at::kDouble, false},
        ModelCase{"SelectiveSecond", CheckpointMode::kSelective, 2, at::kFloat, true},
        ModelCase{"FullQwen3", CheckpointMode::kFull, 1, at::kBFloat16, false, "qwen3"},
        ModelCase{"SelectiveQwen2", CheckpointMode::kSelective, 1, at::kBFloat16, false, "qwen2"}),
    [](const auto& info) { return info.param.name; });

constexpr CheckpointMode kModes[] = {CheckpointMode::kFull, CheckpointMode::kSelective};

// Forwards of each block's attention.
std::shared_ptr<int> count_attention(Transformer& model) {
  auto count = std::make_shared<int>(0);
  for (const auto& block : model.layers) {
    block->self_attn->register_forward_pre_hook([count](at::Tensor x) {
      ++*count;
      return x;
    });
  }
  return count;
}

TEST(ActivationCheckpoint, FullRecomputesExactlyOnceSelectiveNeverAttention) {
  for (const CheckpointMode mode : kModes) {
    const auto model = make_model(small_config(), at::kFloat, {mode, 1});
    const auto count = count_attention(*model);
    const at::Tensor loss = model->loss_sum(tokens_of(0), tokens_of(1));
    EXPECT_EQ(*count, 5);
    loss.backward();
    EXPECT_EQ(*count, mode == CheckpointMode::kFull ? 10 : 5);
  }
}

TEST(ActivationCheckpoint, LeavesPassesWithoutGradientsAlone) {
  const std::vector<int64_t> prompt = {1, 2, 3};
  SamplingOptions greedy;
  greedy.max_new_tokens = 8;
  greedy.temperature = 0.0;
  const auto plain = make_model(small_config(), at::kFloat);
  const auto expected = generate(*plain, prompt, greedy);
  for (const CheckpointMode mode : kModes) {
    const auto model = make_model(small_config(), at::kFloat, {mode, 1});
    const auto count = count_attention(*model);
    {
      const c10::NoGradGuard no_grad;
      const at::Tensor loss = model->loss_sum(tokens_of(0), tokens_of(1));
      expect_bitwise_equal(loss, plain->loss_sum(tokens_of(0), tokens_of(1)));
      EXPECT_FALSE(loss.requires_grad());
      EXPECT_EQ(*count, 5);
    }
    EXPECT_EQ(generate(*model, prompt, greedy), expected);
  }
}

TEST(ActivationCheckpoint, WorksBehindFrozenLayers) {
  for (const CheckpointMode mode : kModes) {
    const auto plain = make_model(small_config(), at::kBFloat16);
    const auto model = make_model(small_config(), at::kBFloat16, {mode, 1});
    for (const auto& each : {plain, model}) {
      // The first block's input needs no gradient, nor does what its norm returns.
      each->embed_tokens->weight.set_requires_grad(false);
      each->layers[0]->input_layernorm->weight.set_requires_grad(false);
      for (at::Tensor& parameter : each->layers[1]->parameters()) {
        parameter.set_requires_grad(false);
      }
      train(*each);
    }
    expect_same_gradients(*model, *plain);
    EXPECT_FALSE(model->embed_tokens->weight.grad().defined());
  }
}

TEST(ActivationCheckpoint, AllFrozenNeedsNoBackward) {
  for (const CheckpointMode mode : kModes) {
    const auto model = make_model(small_config(), at::kFloat, {mode, 1});
    for (at::Tensor& parameter : model->parameters()) {
      parameter.set_requires_grad(false);
    }
    EXPECT_FALSE(model->loss_sum(tokens_of(0), tokens_of(1)).requires_grad());
  }
}

TEST(ActivationCheckpoint, KeptGraphGivesTheSameGradientsAgain) {
  for (const CheckpointMode mode : kModes) {
    const auto plain = make_model(small_config(), at::kFloat);
    const auto model = make_model(small_config(), at::kFloat, {mode, 1});
    for (const auto& each : {plain, model}) {
      const at::Tensor loss = each->loss_sum(tokens_of(0), tokens_of(1));
      loss.backward({}, /*retain_graph=*/true);
      loss.backward();
    }
    expect_same_gradients(*model, *plain);
  }
}

template <typename Body>
void expect_refused(const std::string& text, const Body& body) {
  try {
    body();
    ADD_FAILURE() << "expected a refusal with '" << text << "'";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(ActivationCheckpoint, RefusesWhatItCannotDo) {
  for (const CheckpointMode mode : kModes) {
    const auto model = make_model(small_config(), at::kFloat, {mode, 1});
    const at::Tensor loss = model->loss_sum(tokens_of(0), tokens_of(1));
    expect_refused("create_graph", [&] { loss.backward({}, true, /*create_graph=*/true); });
    expect_refused("twice", [&] {
      recompute_forward(*model->layers[0]);
      recompute_forward(*model->layers[0]);
    });
  }
  const auto model = make_model(small_config(), at::kFloat, {CheckpointMode::kFull, 1});
  const at::Tensor loss = model->loss_sum(tokens_of(0), tokens_of(1));
  const std::vector<at::Tensor> inputs = {model->embed_tokens->weight};
  expect_refused("use backward()",
                 [&] { loss.backward({}, std::nullopt, false, at::TensorList(inputs)); });
  expect_refused("at least 1", [&] {
    apply_activation_checkpoint(*model, {CheckpointMode::kFull, 0});
  });
}

// y = body(x), with a weight of its own.
class Toy : public Layer {
 public:
  explicit Toy(std::function<at::Tensor(const at::Tensor& x, const at::Tensor& weight)> body)
      : body_(std::move(body)) {
    add_parameter("weight", weight, at::full({6}, 0.5));
  }
  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x, [this](const at::Tensor& input) { return body_(input, weight); });
  }
  at::Tensor weight;

 private:
  std::function<at::Tensor(const at::Tensor& x, const at::Tensor& weight)> body_;
};

at::Tensor generator_state() {
  return at::globalContext().defaultGenerator(at::kCPU).get_state().clone();
}

TEST(RecomputeForward, DrawsTheSameRandomNumbersAndLeavesTheGeneratorWhereItWas) {
  const auto dropout = [](const at::Tensor& x, const at::Tensor& weight) {
    return x.mul(weight).mul(at::bernoulli(at::full(x.sizes(), 0.5)));
  };
  Toy plain(dropout);
  Toy toy(dropout);
  recompute_forward(toy);
  const at::Tensor x = at::rand({4, 6});
  for (Toy* each : {&plain, &toy}) {
    at::manual_seed(7);
    const at::Tensor y = (*each)(x);
    at::rand({3});  // others draw in between
    const at::Tensor before = generator_state();
    y.square().sum().backward();
    expect_bitwise_equal(generator_state(), before);
  }
  expect_same_gradients(toy, plain);
}

TEST(RecomputeForward, FailureInBackwardReachesTheCallerAndNextStepWorks) {
  int calls = 0;
  Toy toy([&](const at::Tensor& x, const at::Tensor& weight) {
    const at::Tensor mask = at::bernoulli(at::full(x.sizes(), 0.5));
    if (++calls == 2) {
      throw std::runtime_error("no memory left");
    }
    return x.mul(weight).mul(mask);
  });
  recompute_forward(toy);
  const at::Tensor x = at::ones({2, 6});
  const at::Tensor y = toy(x).sum();
  const at::Tensor before = generator_state();
  try {
    y.backward();
    ADD_FAILURE() << "expected the failure";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("no memory left"), std::string::npos);
  }
  expect_bitwise_equal(generator_state(), before);
  EXPECT_FALSE(toy.weight.grad().defined());
  toy(x).sum().backward();
  EXPECT_TRUE(toy.weight.grad().defined());
  EXPECT_EQ(calls, 4);
}

TEST(RecomputeForward, ChangedOutputIsNamed) {
  int64_t rows = 0;
  Toy toy([&](const at::Tensor& x, const at::Tensor& weight) {
    return x.mul(weight).narrow(0, 0, ++rows);
  });
  recompute_forward(toy);
  const at::Tensor y = toy(at::ones({4, 6})).sum();
  expect_refused("must depend on its input alone", [&] { y.backward(); });
}

class Nest : public Layer {
 public:
  explicit Nest(std::shared_ptr<Toy> toy) { add_child("inner", inner, std::move(toy)); }
  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x, [this](const at::Tensor& input) { return (*inner)(input.exp()).sin(); });
  }
  std::shared_ptr<Toy> inner;
};

TEST(RecomputeForward, NestsAndRunsTheInnerOneOnceMoreForEachLevel) {
  int calls = 0;
  const auto body = [&](const at::Tensor& x, const at::Tensor& weight) {
    ++calls;
    return x.tanh().mul(weight);
  };
  Nest plain(std::make_shared<Toy>(body));
  Nest nest(std::make_shared<Toy>(body));
  recompute_forward(*nest.inner);
  recompute_forward(nest);
  at::Tensor x = at::rand({4, 6});
  at::Tensor leaf = x.clone();
  x.set_requires_grad(true);
  leaf.set_requires_grad(true);
  plain(x).sum().backward();
  EXPECT_EQ(calls, 1);
  nest(leaf).sum().backward();
  EXPECT_EQ(calls, 4);  // forward, the outer's recomputation, the inner's inside of that
  expect_same_gradients(nest, plain);
  expect_bitwise_equal(leaf.grad(), x.grad());
}

TEST(RecomputeForward, InputReturnedAsItIsSurvives) {
  Toy toy([](const at::Tensor& x, const at::Tensor&) { return x; });
  recompute_forward(toy);
  at::Tensor x = at::ones({2, 6});
  x.set_requires_grad(true);
  toy(x).mul(3).sum().backward();
  expect_bitwise_equal(x.grad(), at::full({2, 6}, 3.0));
}

// ---- One output -------------------------------------------------------------------------------

struct Pair {
  explicit Pair(int& calls)
      : producer([](const at::Tensor& x, const at::Tensor& weight) { return x.mul(weight); }),
        consumer({6, 4, false}, at::TensorOptions()) {
    consumer.replace_parameter("weight", at::full({4, 6}, 0.25).set_requires_grad(true));
    recompute_output(
        producer,
        [this, &calls](const at::Tensor& x) {
          ++calls;
          return x.mul(producer.weight);
        },
        consumer);
  }
  at::Tensor operator()(const at::Tensor& x) { return consumer(producer(x)); }
  Toy producer;
  Linear consumer;
};

TEST(RecomputeOutput, ComputesOnceAndOnlyIfBackwardNeedsIt) {
  int calls = 0;
  Pair pair(calls);
  const at::Tensor x = at::ones({2, 6});
  at::Tensor y = pair(x).sum();
  EXPECT_EQ(calls, 0);
  y.backward();
  EXPECT_EQ(calls, 1);
  expect_bitwise_equal(pair.consumer.weight.grad(), at::full({4, 6}, 1.0));
  expect_bitwise_equal(pair.producer.weight.grad(), at::full({6}, 2.0));
  // A frozen weight's gradient is not computed, so nobody has kept the output.
  pair.consumer.weight.set_requires_grad(false);
  pair(x).sum().backward();
  EXPECT_EQ(calls, 1);
}

TEST(RecomputeOutput, EachForwardHasItsOwn) {
  int calls = 0;
  Pair pair(calls);
  const at::Tensor first = pair(at::full({1, 6}, 2.0)).sum();
  const at::Tensor second = pair(at::full({1, 6}, 3.0)).sum();
  first.backward();
  expect_bitwise_equal(pair.consumer.weight.grad(), at::full({4, 6}, 1.0));
  second.backward();
  expect_bitwise_equal(pair.consumer.weight.grad(), at::full({4, 6}, 2.5));
  EXPECT_EQ(calls, 2);
}

// ---- Memory -----------------------------------------------------------------------------------

struct Memory {
  int64_t saved = 0;  // by forward, for backward
  int64_t peak = 0;   // of the whole step
};

// Of the second step, when rotary table and gradients have their memory.
Memory measure(int64_t num_layers, const ActivationCheckpoint& options) {
  TransformerConfig config = small_config();
  config.num_layers = num_layers;
  config.vocab_size = 8;
  const auto model = make_model(config, at::kFloat, options);
  const at::Tensor tokens = tokens_of(0).remainder(8);
  model->loss_sum(tokens, tokens).backward();
  const int64_t before = narrowgauge::testing::live_bytes();
  narrowgauge::testing::reset_peak_bytes();
  const at::Tensor loss = model->loss_sum(tokens, tokens);
  const int64_t saved = narrowgauge::testing::live_bytes() - before;
  loss.backward();
  return {saved, narrowgauge::testing::peak_bytes() - before};
}

// What one more block adds.
Memory of_a_block(const ActivationCheckpoint& options) {
  const Memory few = measure(4, options);
  const Memory more = measure(5, options);
  return {more.saved - few.saved, more.peak - few.peak};
}

constexpr int64_t kFloats = kBatch * kLength * static_cast<int64_t>(sizeof(float));

TEST(ActivationMemory, FullKeepsOneInputPerBlock) {
  narrowgauge::testing::live_bytes();
  const Memory block = of_a_block({CheckpointMode::kFull, 1});
  EXPECT_EQ(block.saved, 24 * kFloats);  // [batch, t, dim]
  EXPECT_EQ(block.peak, 24 * kFloats);
}

TEST(ActivationMemory, SelectiveDropsTwoNormsAndTheGatedProduct) {
  const Memory plain = of_a_block({});
  const Memory block = of_a_block({CheckpointMode::kSelective, 1});
  EXPECT_EQ(plain.saved - block.saved, (2 * 24 + 40) * kFloats);  // 2 dim + ffn_dim
  EXPECT_EQ(plain.peak - block.peak, (2 * 24 + 40) * kFloats);
}

TEST(ActivationMemory, EverySecondBlockSavesHalf) {
  const int64_t plain = measure(4, {}).saved;
  const int64_t all = measure(4, {CheckpointMode::kFull, 1}).saved;
  const int64_t half = measure(4, {CheckpointMode::kFull, 2}).saved;
  EXPECT_EQ(2 * (plain - half), plain - all);
}

}  // namespace
}  // namespace narrowgauge::nn
