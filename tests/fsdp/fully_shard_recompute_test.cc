// Activation checkpointing around and inside sharded layers, by autograd functions that run forward
// again inside backward: gradients are those without (but for the layout of the tensors between,
// and so the order of sums in a matrix product), and a recomputation reshards nothing.

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fsdp/fully_shard.h"
#include "nn/linear.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::run_ranks_shared;
using Segment = std::function<at::Tensor(const at::Tensor&)>;

// Reentrant: forward without gradients, backward runs it again and differentiates that.
class Checkpoint : public torch::autograd::Function<Checkpoint> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const std::shared_ptr<Segment>& segment) {
    context->save_for_backward({input});
    context->saved_data["segment"] = reinterpret_cast<int64_t>(segment.get());
    const c10::NoGradGuard no_grad;
    return (*segment)(input);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto* segment = reinterpret_cast<const Segment*>(context->saved_data["segment"].toInt());
    const c10::AutoGradMode grad_mode(true);
    const at::Tensor input = context->get_saved_variables()[0].detach().set_requires_grad(true);
    (*segment)(input).backward(gradients[0]);
    return {input.grad(), at::Tensor()};
  }
};

// x + out(relu(in(x))) like ToyBlock, with each part sharded on its own where asked.
class Block : public nn::Layer {
 public:
  explicit Block(const at::TensorOptions& options) {
    add_child("in", in, std::make_shared<nn::Linear>(nn::LinearSpec{5, 7, true}, options));
    add_child("out", out, std::make_shared<nn::Linear>(nn::LinearSpec{7, 5, true}, options));
  }

  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x, [this](const at::Tensor& y) {
      return checkpoint_inside ? Checkpoint::apply(y, compute) : (*compute)(y);
    });
  }

  std::shared_ptr<nn::Linear> in, out;
  bool checkpoint_inside = false;
  std::shared_ptr<Segment> compute = std::make_shared<Segment>(
      [this](const at::Tensor& y) { return y.add((*out)((*in)(y).relu())); });
};

enum class Where { kNowhere, kInsideHooks, kOutsideHooks };

class Stack : public nn::Layer {
 public:
  explicit Stack(Where where, const at::TensorOptions& options = at::TensorOptions(at::kMeta))
      : where_(where) {
    add_child("first", first, std::make_shared<nn::Linear>(nn::LinearSpec{5, 5, true}, options));
    blocks.resize(3);
    for (int i = 0; i < 3; ++i) {
      add_child("block" + std::to_string(i), blocks[i], std::make_shared<Block>(options));
      blocks[i]->checkpoint_inside = where == Where::kInsideHooks;
      segments_.push_back(
          std::make_shared<Segment>([this, i](const at::Tensor& y) { return (*blocks[i])(y); }));
    }
  }

  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x, [this](const at::Tensor& y) {
      at::Tensor z = (*first)(y);
      for (const auto& segment : segments_) {
        z = where_ == Where::kOutsideHooks ? Checkpoint::apply(z, segment) : (*segment)(z);
      }
      return z;
    });
  }

  std::shared_ptr<nn::Linear> first;
  std::vector<std::shared_ptr<Block>> blocks;

 private:
  Where where_;
  std::vector<std::shared_ptr<Segment>> segments_;
};

struct Case {
  Where where;
  bool shard_parts;  // the block's `in` is a group of its own, inside the recomputed segment
  std::optional<ReshardAfterForward> reshard_after_forward;
};

std::vector<at::Tensor> gradients_of(const Case& tested, const comm::DeviceMesh& mesh, int rank) {
  Stack model(tested.where);
  const FullyShardOptions options{.reshard_after_forward = tested.reshard_after_forward};
  for (const auto& block : model.blocks) {
    if (tested.shard_parts) {
      fully_shard(*block->in, mesh, options);
    }
    fully_shard(*block, mesh, options);
  }
  fully_shard(model, mesh, options);
  materialize(model, at::kCPU, initialize_toy);
  std::vector<at::Tensor> gradients;
  for (int step = 0; step < 2; ++step) {
    // Two forwards before their backwards, and a third after.
    const at::Tensor x = at::zeros({3, 5}).add(0.1 * (rank + 1) + step);
    const at::Tensor a = model(x).pow(2).sum();
    const at::Tensor b = model(x.mul(0.5)).pow(2).sum();
    (a + b).backward();
    model(x.mul(0.25)).pow(2).sum().backward();
    for (const ShardedParameter& parameter : sharded_parameters(model)) {
      gradients.push_back(parameter.local.grad().clone());
    }
    for (const auto& parameter : model.named_parameters()) {
      EXPECT_EQ(parameter.value().storage().nbytes(), 0U) << parameter.key();
    }
  }
  return gradients;
}

TEST(Recompute, HasTheGradientsOfNoCheckpointing) {
  for (const int ranks : {2, 3}) {
    for (const auto& reshard : {std::optional<ReshardAfterForward>(), {true}, {false}}) {
      for (const bool shard_parts : {false, true}) {
        run_ranks_shared(ranks, [&](auto world) {
          const comm::DeviceMesh mesh(world, 1, ranks);
          const auto expected =
              gradients_of({Where::kNowhere, shard_parts, reshard}, mesh, world->rank());
          for (const Where where : {Where::kInsideHooks, Where::kOutsideHooks}) {
            const auto actual = gradients_of({where, shard_parts, reshard}, mesh, world->rank());
            ASSERT_EQ(actual.size(), expected.size());
            for (size_t i = 0; i < actual.size(); ++i) {
              EXPECT_TRUE(actual[i].allclose(expected[i], 1e-6, 1e-6))
                  << i << " where " << static_cast<int>(where) << " parts " << shard_parts
                  << " policy " << reshard.has_value();
            }
          }
        });
      }
    }
  }
}

// A part that is sharded inside a recomputed block: gathered once for the recomputation, which
// keeps it for the backward that follows.
TEST(Recompute, ReshardsNothingBeforeItsBackward) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    Stack model(Where::kInsideHooks);
    fully_shard(*model.blocks[1]->in, mesh, {.reshard_after_forward = true});
    fully_shard(*model.blocks[1], mesh, {.reshard_after_forward = true});
    fully_shard(model, mesh);
    materialize(model, at::kCPU, initialize_toy);
    std::vector<std::string> events;
    set_event_recorder(model, [&](const TrainingEvent& event) {
      static constexpr const char* kKinds[] = {"unshard ", "reshard ", "post_backward "};
      events.push_back(kKinds[static_cast<int>(event.kind)] + event.group);
    });
    const at::Tensor loss = model(at::zeros({3, 5}).add(0.3)).sum();
    events.clear();
    loss.backward();
    EXPECT_EQ(events,
              (std::vector<std::string>{"unshard block1", "unshard block1.in", "reshard block1.in",
                                        "post_backward block1.in", "reshard block1",
                                        "post_backward block1", "reshard ", "post_backward "}));
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp
