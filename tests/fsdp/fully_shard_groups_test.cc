// What a group may hold: several layers, mixed dtypes, frozen and ignored parameters; and the hook
// where an optimizer steps in backward.

#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fsdp/fully_shard.h"
#include "nn/linear.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/counting_communicator.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::CollectiveLog;
using narrowgauge::testing::CountingCommunicator;
using narrowgauge::testing::run_ranks_shared;

std::shared_ptr<ToyModel> toy_on_meta() {
  return std::make_shared<ToyModel>(ToySpec{}, at::TensorOptions(at::kMeta));
}

std::map<std::string, at::Tensor> gradients(nn::Layer& root) {
  std::map<std::string, at::Tensor> gradients;
  for (const ShardedParameter& parameter : sharded_parameters(root)) {
    gradients[parameter.fqn] = parameter.local.grad();
  }
  return gradients;
}

void expect_equal(const std::map<std::string, at::Tensor>& actual,
                  const std::map<std::string, at::Tensor>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [fqn, gradient] : expected) {
    ASSERT_EQ(actual.at(fqn).defined(), gradient.defined()) << fqn;
    EXPECT_TRUE(!gradient.defined() || actual.at(fqn).equal(gradient)) << fqn;
  }
}

TEST(Groups, SeveralLayersTravelTogether) {
  run_ranks_shared(2, [](auto world) {
    const auto log = std::make_shared<CollectiveLog>();
    const comm::DeviceMesh mesh(std::make_shared<CountingCommunicator>(world, log), 1, 2);
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, 12), world->rank(), 2);
    const auto apart = make_sharded_toy({}, mesh, {});
    apart->loss_sum(batch.tokens, batch.targets).backward();

    const auto model = toy_on_meta();
    fully_shard(*model->blocks[0], mesh);
    fully_shard({model->blocks[2].get(), model->lm_head.get()}, mesh);
    fully_shard(*model, mesh);  // the embedding and block 1
    materialize(*model, at::kCPU, initialize_toy);
    std::vector<std::string> unsharded;
    set_event_recorder(*model, [&](const TrainingEvent& event) {
      if (event.kind == TrainingEvent::Kind::kUnshard) {
        unsharded.push_back(event.group);
      }
    });
    for (int step = 0; step < 2; ++step) {
      log->clear();
      unsharded.clear();
      for (at::Tensor& local : std::vector<at::Tensor>(locals_of(*model))) {
        local.mutable_grad().reset();
      }
      model->loss_sum(batch.tokens, batch.targets).backward();
      EXPECT_EQ(unsharded, (std::vector<std::string>{"", "block0", "block2, lm_head",
                                                     "block2, lm_head", "block0"}));
      EXPECT_EQ(log->count("reduce_scatter"), 3);
      expect_equal(gradients(*model), gradients(*apart));
    }
    EXPECT_EQ(model->lm_head->weight.storage().nbytes(), 0U);
  });
}

TEST(Groups, ALayerThatDoesNotRunHoldsUpNothing) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, 12), world->rank(), 2);
    const auto model = toy_on_meta();
    fully_shard({model->blocks[0].get(), model->lm_head.get()}, mesh);
    fully_shard(*model, mesh);
    materialize(*model, at::kCPU, initialize_toy);
    const auto run_without_head = [&] {
      at::Tensor x = (*model->embed_tokens)(batch.tokens);
      return (*model->blocks[0])(x).sum();
    };
    model->loss_sum(batch.tokens, batch.targets).backward();
    const auto expected = gradients(*model);
    for (at::Tensor& local : std::vector<at::Tensor>(locals_of(*model))) {
      local.mutable_grad().reset();
    }
    {
      const GatheredParameters gathered(*model);  // the embedding is the root's
      const c10::NoGradGuard no_grad;
      run_without_head();
    }
    model->loss_sum(batch.tokens, batch.targets).backward();
    expect_equal(gradients(*model), expected);
  });
}

TEST(Groups, IgnoredParametersStayAsTheyAre) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, 12), world->rank(), 2);
    const auto model = make_reference_toy({});
    const at::Tensor head = model->lm_head->weight;
    const FullyShardOptions options{.ignored_params = {head}};
    for (const auto& block : model->blocks) {
      fully_shard(*block, mesh, options);
    }
    fully_shard(*model, mesh, options);
    EXPECT_TRUE(model->lm_head->weight.is_same(head));
    model->loss_sum(batch.tokens, batch.targets).backward();
    EXPECT_TRUE(head.grad().defined());  // this rank's own
    const auto sharded = make_sharded_toy({}, mesh, {});
    sharded->loss_sum(batch.tokens, batch.targets).backward();
    auto expected = gradients(*sharded);
    expected.erase("lm_head.weight");
    expect_equal(gradients(*model), expected);
    EXPECT_EQ(sharded_parameters(*model).size(), expected.size());
  });
}

// As a quantized base with adapters: y = (x (base + codes)^T + x a^T b^T) scale.
class MixedLayer : public nn::Layer {
 public:
  MixedLayer() {
    const auto integers = [](at::IntArrayRef sizes, at::ScalarType dtype) {
      return at::arange(c10::multiply_integers(sizes), at::kFloat)
          .remainder(3)
          .view(sizes)
          .to(dtype);
    };
    add_parameter("base", base, integers({5, 3}, at::kBFloat16));
    add_parameter("codes", codes, integers({5, 3}, at::kByte));
    add_parameter("a", a, integers({2, 3}, at::kFloat));
    add_parameter("b", b, integers({5, 2}, at::kFloat));
    add_parameter("scale", scale, integers({5}, at::kBFloat16));
    base.set_requires_grad(false);
  }

  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x, [this](const at::Tensor& y) {
      const at::Tensor weight = base.to(at::kFloat).add(codes.to(at::kFloat));
      return y.matmul(weight.t()).add(y.matmul(a.t()).matmul(b.t())).mul(scale.to(at::kFloat));
    });
  }

  at::Tensor base, codes, a, b, scale;
};

struct MixedCase {
  std::optional<at::ScalarType> reduce_dtype;
  int64_t num_reductions;
};

TEST(Groups, MixedDtypesAndFrozenParametersInOneGroup) {
  for (const MixedCase& mixed : {MixedCase{std::nullopt, 2}, {at::kFloat, 1}, {at::kDouble, 1}}) {
    for (const auto& [replicate, shard] : {std::pair(1, 1), {1, 2}, {1, 4}, {2, 2}, {2, 1}}) {
      run_ranks_shared(replicate * shard, [&](auto world) {
        const auto log = std::make_shared<CollectiveLog>();
        const comm::DeviceMesh mesh(std::make_shared<CountingCommunicator>(world, log), replicate,
                                    shard);
        // Small integers: every product and sum below is exact, also in bf16.
        const auto input = [](int rank) { return at::ones({1, 3}).mul(rank + 1); };
        MixedLayer reference;
        for (int rank = 0; rank < world->size(); ++rank) {
          reference(input(rank)).sum().backward();
        }
        MixedLayer layer;
        fully_shard(layer, mesh, {.mp_policy = {.reduce_dtype = mixed.reduce_dtype}});
        log->clear();
        const at::Tensor y = layer(input(world->rank()));
        EXPECT_TRUE(y.equal(reference(input(world->rank()))));
        y.sum().backward();
        EXPECT_EQ(log->count("all_gather"), shard > 1 ? 1 : 0);
        EXPECT_EQ(log->count("reduce_scatter"), shard > 1 ? mixed.num_reductions : 0);
        EXPECT_EQ(log->count("all_reduce"), replicate > 1 ? mixed.num_reductions : 0);
        for (const ShardedParameter& parameter : sharded_parameters(layer)) {
          const at::Tensor whole = reference.named_parameters()[parameter.fqn];
          EXPECT_EQ(parameter.local.scalar_type(), whole.scalar_type());
          ASSERT_EQ(parameter.local.grad().defined(), whole.grad().defined()) << parameter.fqn;
          if (whole.grad().defined()) {
            EXPECT_TRUE(parameter.local.grad().equal(
                whole.grad().narrow(0, parameter.row_begin, parameter.local.size(0))))
                << parameter.fqn << parameter.local.grad() << whole.grad();
          }
        }
      });
    }
  }
}

TEST(Groups, FrozenOnesAreGatheredAsLittleAsPossible) {
  run_ranks_shared(2, [](auto world) {
    const auto log = std::make_shared<CollectiveLog>();
    const comm::DeviceMesh mesh(std::make_shared<CountingCommunicator>(world, log), 1, 2);
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, 12), world->rank(), 2);
    const auto model = toy_on_meta();
    // The head alone is trained; block 2 stands between a trained one and it.
    for (const auto& parameter : model->named_parameters()) {
      parameter.value().set_requires_grad(parameter.key() == "lm_head.weight" ||
                                          parameter.key().rfind("block1", 0) == 0);
    }
    for (const auto& block : model->blocks) {
      fully_shard(*block, mesh);
    }
    fully_shard(*model->embed_tokens, mesh);
    fully_shard(*model, mesh);
    materialize(*model, at::kCPU, initialize_toy);
    std::vector<std::string> unsharded;
    set_event_recorder(*model, [&](const TrainingEvent& event) {
      if (event.kind == TrainingEvent::Kind::kUnshard) {
        unsharded.push_back(event.group);
      }
    });
    const auto step = [&] {
      log->clear();
      unsharded.clear();
      const at::Tensor loss = model->loss_sum(batch.tokens, batch.targets);
      EXPECT_EQ(log->count("all_gather"), static_cast<int64_t>(unsharded.size()));
      loss.backward();
      return unsharded;
    };
    // No gradient flows to the embedding and block 0: backward neither needs nor prefetches them.
    using Names = std::vector<std::string>;
    EXPECT_EQ(step(),
              (Names{"", "embed_tokens", "block0", "block1", "block2", "block2", "block1"}));
    EXPECT_EQ(log->count("reduce_scatter"), 2);  // block 1 and the root
    // Kept from micro-batch to micro-batch and from step to step, in forward and backward; what is
    // trained follows the optimizer.
    set_reshard_after_forward(*model, false);
    set_reshard_after_backward(*model, false);
    step();
    EXPECT_EQ(step(), (Names{"", "block1"}));
    set_requires_gradient_sync(*model, false);
    step();
    EXPECT_EQ(step(), Names{});
  });
}

TEST(PostAccumulateGradHook, StepsInBackward) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const auto expected = make_sharded_toy({}, mesh, {});
    const auto model = make_sharded_toy({}, mesh, {.reshard_after_forward = false});
    set_reshard_after_backward(*model, false);
    const auto descend = [](at::Tensor& parameter) {
      const c10::NoGradGuard no_grad;
      // Through the pointer, which counts no version.
      float* values = parameter.mutable_data_ptr<float>();
      const float* gradients = parameter.grad().const_data_ptr<float>();
      for (int64_t i = 0; i < parameter.numel(); ++i) {
        values[i] -= 0.01F * gradients[i];
      }
      parameter.mutable_grad().reset();
    };
    int num_steps = 0;
    for (const ShardedParameter& parameter : sharded_parameters(*model)) {
      set_post_accumulate_grad_hook(*model, parameter.fqn, [&](at::Tensor& local) {
        ++num_steps;
        descend(local);
      });
    }
    for (int step = 0; step < 3; ++step) {
      const ToyBatch batch = slice_of_rank(toy_batch({}, step, 12), world->rank(), 2);
      const at::Tensor loss = model->loss_sum(batch.tokens, batch.targets);
      const at::Tensor expected_loss = expected->loss_sum(batch.tokens, batch.targets);
      ASSERT_TRUE(loss.equal(expected_loss)) << step;
      loss.backward();
      expected_loss.backward();
      for (at::Tensor& local : std::vector<at::Tensor>(locals_of(*expected))) {
        descend(local);
      }
    }
    EXPECT_EQ(num_steps, 3 * static_cast<int>(locals_of(*model).size()));
    EXPECT_THROW(set_post_accumulate_grad_hook(*model, "nobody", nullptr), c10::Error);
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp
