// Sharding, construction on meta, the list of sharded parameters, errors, extensions.

#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "fsdp/fully_shard.h"
#include "nn/linear.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::run_ranks;
using narrowgauge::testing::run_ranks_shared;

at::Tensor iota(at::IntArrayRef sizes) {
  return at::arange(c10::multiply_integers(sizes), at::kFloat).view(sizes);
}

template <typename Body>
void expect_error(const Body& body, const std::string& expected) {
  try {
    body();
    ADD_FAILURE() << "expected an error with: " << expected;
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
  }
}

TEST(FullyShardInit, RowsAreTorchChunks) {
  struct Case {
    int64_t rows;
    std::vector<int64_t> sizes;  // on 4 ranks
  };
  for (const Case& expected :
       {Case{10, {3, 3, 3, 1}}, {5, {2, 2, 1, 0}}, {1, {1, 0, 0, 0}}, {8, {2, 2, 2, 2}}}) {
    run_ranks_shared(4, [&](auto world) {
      const comm::DeviceMesh mesh(world, 1, 4);
      nn::Linear linear({2, expected.rows, false}, at::TensorOptions());
      linear.replace_parameter("weight", iota({expected.rows, 2}).set_requires_grad(true));
      fully_shard(linear, mesh);
      const ShardedParameter weight = sharded_parameters(linear).at(0);
      int64_t begin = 0;
      for (int rank = 0; rank < world->rank(); ++rank) {
        begin += expected.sizes[rank];
      }
      const int64_t size = expected.sizes[world->rank()];
      EXPECT_EQ(weight.row_begin, begin);
      EXPECT_EQ(weight.global_sizes, (std::vector<int64_t>{expected.rows, 2}));
      EXPECT_TRUE(weight.local.equal(iota({expected.rows, 2}).narrow(0, begin, size)));
      EXPECT_TRUE(weight.local.is_leaf() && weight.local.requires_grad());
      EXPECT_TRUE(full_parameter(weight, mesh).equal(iota({expected.rows, 2})));
    });
  }
}

TEST(FullyShardInit, MaterializeInitialisesEachShardOnceInModelOrder) {
  run_ranks_shared(3, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 3);
    ToyModel model({.num_blocks = 1, .tied = true}, at::TensorOptions(at::kMeta));
    fully_shard(*model.blocks[0], mesh);
    fully_shard(model, mesh);
    expect_error([&] { model(at::zeros({1, 1}, at::kLong)); }, "on meta; call materialize");
    std::vector<std::string> names;
    materialize(model, at::kCPU, [&](const std::string& fqn, at::Tensor shard, int64_t row_begin) {
      EXPECT_EQ(shard.count_nonzero().template item<int64_t>(), 0);
      EXPECT_FALSE(shard.requires_grad());
      names.push_back(fqn);
      initialize_toy(fqn, shard, row_begin);
    });
    EXPECT_EQ(names,
              (std::vector<std::string>{"embed_tokens.weight", "block0.in.weight", "block0.in.bias",
                                        "block0.out.weight", "block0.out.bias"}));
    EXPECT_TRUE(model.lm_head->weight.is_same(model.embed_tokens->weight));
    const auto whole = full_parameters(model, mesh);
    for (const auto& [fqn, parameter] : whole) {
      const at::Tensor expected = at::zeros_like(parameter);
      initialize_toy(fqn, expected, 0);
      EXPECT_TRUE(parameter.equal(expected)) << fqn;
    }
  });
}

TEST(FullyShardInit, MaterializeAgainSetsValuesAnew) {
  run_ranks_shared(2, [](auto world) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const comm::DeviceMesh mesh(world, 1, 2);
      nn::Linear linear({2, 3, false}, at::TensorOptions());
      fully_shard(linear, mesh, {.mp_policy = {.param_dtype = dtype}});
      for (const double value : {1.0, 2.0}) {
        materialize(linear, at::kCPU,
                    [&](const std::string&, at::Tensor shard, int64_t) { shard.fill_(value); });
        EXPECT_EQ(linear(at::ones({1, 2})).sum().item<float>(), 6 * value);
      }
    }
  });
}

TEST(FullyShardInit, ErrorsNameTheParameter) {
  run_ranks_shared(1, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 1);
    nn::Linear twice({2, 3, false}, at::TensorOptions());
    fully_shard(twice, mesh);
    expect_error([&] { fully_shard(twice, mesh); }, "not sharded yet");

    nn::Linear strided({2, 3, false}, at::TensorOptions());
    strided.replace_parameter("weight", at::zeros({2, 3}).t());
    expect_error([&] { fully_shard(strided, mesh); }, "contiguous parameters, got 'weight'");

    nn::Linear scalar({2, 3, false}, at::TensorOptions());
    scalar.replace_parameter("weight", at::zeros({}));
    expect_error([&] { fully_shard(scalar, mesh); }, "at least one dimension");

    ToyModel tied({.tied = true}, at::TensorOptions());
    fully_shard(*tied.lm_head, mesh);
    expect_error(
        [&] { fully_shard(tied, mesh); },
        "got 'embed_tokens.weight' tied to 'weight' of a layer that is sharded on its own");

    ToyModel half({}, at::TensorOptions());
    fully_shard(*half.blocks[0], mesh);
    expect_error([&] { sharded_parameters(half); }, "got 'embed_tokens.weight', which is not");
    expect_error([&] { GatheredParameters gathered(half); }, "expected a sharded root");

    nn::Linear pairs({2, 3, false}, at::TensorOptions());
    expect_error([&] { fully_shard(pairs, mesh, {.reshard_after_forward = 2}); },
                 "reshard_after_forward to divide the shard axis of 1 ranks, got 2");
    expect_error([&] { fully_shard(std::vector<nn::Layer*>{}, mesh); }, "at least one layer");
    nn::Linear plain({2, 3, false}, at::TensorOptions());
    expect_error([&] { unshard(plain); }, "expected a sharded layer");
    expect_error([&] { set_requires_all_reduce(plain, false); }, "sharded or has such below");

    ToyModel pair({}, at::TensorOptions());
    fully_shard({pair.blocks[0].get(), pair.blocks[1].get()}, mesh);
    expect_error([&] { (*pair.blocks[0])(at::zeros({1, 5})); }, "expected one layer as root");

    nn::Linear factor({2, 3, false}, at::TensorOptions());
    expect_error([&] { fully_shard(factor, mesh, {.gradient_divide_factor = 0.0}); },
                 "gradient_divide_factor > 0, got 0");
  });
}

// Sends fp32 weights as bf16 bytes with a scale of its own beside them, as float8 will, and hands
// them to the layer.
class ScaledExtension : public ParamExtension {
 public:
  explicit ScaledExtension(at::Tensor* received) : received_(received) {}

  std::vector<at::Tensor> pre_all_gather(const at::Tensor& padded_shard) override {
    ++num_gathers;
    const at::Tensor amax = padded_shard.abs().amax().view({1});
    return {padded_shard.div(amax.clamp_min(1e-12)).to(at::kBFloat16), amax};
  }

  void post_all_gather(std::vector<at::Tensor> outputs) override {
    // [size, padded rows, columns] times [size, 1].
    const at::Tensor scale = outputs[1].unsqueeze(-1);
    *received_ = outputs[0].to(at::kFloat).mul(scale).flatten(0, 1);
  }

  void release() override { received_->reset(); }

  int num_gathers = 0;

 private:
  at::Tensor* received_;
};

// y = x W^T with the W that the extension received; the gradient goes to the anchor.
class AnchoredLinear : public nn::Layer {
 public:
  AnchoredLinear() {
    add_parameter("weight", weight, iota({5, 3}).add(1.0).set_requires_grad(true));
  }
  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x, [this](const at::Tensor& y) {
      EXPECT_EQ(weight.storage().nbytes(), 0U);
      anchors_seen.push_back(received.narrow(0, 0, 5).clone());
      return y.matmul(received.narrow(0, 0, 5).t());
    });
  }
  at::Tensor weight;
  at::Tensor received;
  std::vector<at::Tensor> anchors_seen;
};

TEST(ParamExtension, IsRefusedWithReshardToFewer) {
  run_ranks_shared(4, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 4);
    AnchoredLinear layer;
    FullyShardOptions options{.reshard_after_forward = 2};
    options.make_extension = [&](nn::Layer&, const std::string&) {
      return std::make_unique<ScaledExtension>(&layer.received);
    };
    expect_error([&] { fully_shard(layer, mesh, options); }, "with an extension, got 2");
  });
}

TEST(ParamExtension, DecidesWhatTravelsAndTheAnchorHasNoStorage) {
  for (const int ranks : {1, 2, 4}) {
    run_ranks_shared(ranks, [&](auto world) {
      const comm::DeviceMesh mesh(world, 1, -1);
      AnchoredLinear layer;
      ScaledExtension* extension = nullptr;
      FullyShardOptions options;
      options.make_extension = [&](nn::Layer& owner, const std::string& name) {
        EXPECT_EQ(&owner, &layer);
        EXPECT_EQ(name, "weight");
        auto made = std::make_unique<ScaledExtension>(&layer.received);
        extension = made.get();
        return made;
      };
      fully_shard(layer, mesh, options);
      const at::Tensor x = iota({2, 3});
      for (int step = 0; step < 2; ++step) {
        const c10::NoGradGuard no_grad;
        const at::Tensor y = layer(x);
        // bf16 keeps 8 bits; each of the 3 products is off by that at most.
        const at::Tensor expected = x.matmul(iota({5, 3}).add(1.0).t());
        EXPECT_TRUE(y.allclose(expected, 1.0 / 256, 0.0)) << y << expected;
        EXPECT_EQ(layer.received.defined(), ranks == 1);  // released where it is sharded
      }
      EXPECT_EQ(extension->num_gathers, ranks == 1 ? 1 : 2);
    });
  }
}

}  // namespace
}  // namespace narrowgauge::fsdp
