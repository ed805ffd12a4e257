// The exact order of events that FSDP2's tests document (test_fully_shard_comm.py, "Prefetch").
// Without streams of its own nothing is gained by gathering ahead in forward, so forward is then as
// there without explicit prefetch; with a thread, each group prefetches the next one, and forward
// is as there with an explicit prefetch of one.

#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <functional>
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
using Events = std::vector<std::string>;

std::string text_of(const TrainingEvent& event) {
  static constexpr const char* kKinds[] = {"unshard", "reshard", "post_backward"};
  static constexpr const char* kStates[] = {"idle", "forward", "pre_backward", "post_backward"};
  const std::string kind = kKinds[static_cast<int>(event.kind)];
  const std::string group = event.group.empty() ? "root" : event.group;
  return kind == "post_backward"
             ? kind + " " + group
             : kind + " " + group + " " + kStates[static_cast<int>(event.state)];
}

// Runs `body` on 2 ranks with the events of a toy model, tied or not, of n blocks.
struct Recorded {
  std::shared_ptr<ToyModel> model;
  ToyBatch batch;
  Events events;

  at::Tensor loss() { return model->loss_sum(batch.tokens, batch.targets); }
  Events take() { return std::exchange(events, {}); }
};

enum class Streams { kInline, kThread };

void with_recorded_toy(int64_t num_blocks, std::optional<ReshardAfterForward> reshard,
                       Streams streams, const std::function<void(Recorded&)>& body) {
  run_ranks_shared(2, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const ToySpec spec{.num_blocks = num_blocks};
    Recorded recorded;
    recorded.model = make_sharded_toy(spec, mesh, {.reshard_after_forward = reshard});
    recorded.batch = slice_of_rank(toy_batch(spec, 0, 4), world->rank(), 2);
    set_streams(*recorded.model, streams == Streams::kInline ? CommStreams::inline_streams()
                                                             : CommStreams::thread_stream());
    set_event_recorder(*recorded.model, [&recorded](const TrainingEvent& event) {
      recorded.events.push_back(text_of(event));
    });
    body(recorded);
    set_event_recorder(*recorded.model, nullptr);
  });
}

Events only(const std::string& kind, const Events& events) {
  Events some;
  for (const std::string& event : events) {
    if (event.rfind(kind, 0) == 0) {
      some.push_back(event);
    }
  }
  return some;
}

Events without(const std::string& kind, const Events& events) {
  Events rest;
  for (const std::string& event : events) {
    if (event.rfind(kind, 0) != 0) {
      rest.push_back(event);
    }
  }
  return rest;
}

const Events kUnshardsOfForward = {"unshard root forward", "unshard block0 forward",
                                   "unshard block1 forward", "unshard block2 forward"};
// Each unshard is one place earlier than without prefetch.
const Events kBackward = {"unshard block2 pre_backward", "unshard block1 pre_backward",
                          "post_backward block2",        "unshard block0 pre_backward",
                          "post_backward block1",        "post_backward block0"};

Events backward_of(std::optional<ReshardAfterForward> reshard) {
  Events expected;
  if (reshard) {
    expected.push_back("unshard root pre_backward");
  }
  expected.insert(expected.end(), kBackward.begin(), kBackward.end());
  return reshard == ReshardAfterForward(false) ? without("unshard", expected) : expected;
}

TEST(Prefetch, BackwardAgainstTheOrderOfForward) {
  for (const auto& reshard : {std::optional<ReshardAfterForward>(), {true}, {false}, {2}}) {
    for (const Streams streams : {Streams::kInline, Streams::kThread}) {
      with_recorded_toy(3, reshard, streams, [&](Recorded& recorded) {
        for (int step = 0; step < 3; ++step) {
          const at::Tensor loss = recorded.loss();
          EXPECT_EQ(only("unshard", recorded.take()), kUnshardsOfForward);
          loss.backward();
          Events expected = backward_of(reshard);
          expected.push_back("post_backward root");
          EXPECT_EQ(without("reshard", recorded.take()), expected);
          for (const ShardedParameter& parameter : sharded_parameters(*recorded.model)) {
            const c10::NoGradGuard no_grad;
            at::Tensor local = parameter.local;
            local.detach().add_(local.grad(), -0.01);
            local.mutable_grad().reset();
          }
        }
      });
    }
  }
}

TEST(Prefetch, SeveralForwardsBeforeOneBackward) {
  for (const auto& reshard : {std::optional<ReshardAfterForward>(), {true}, {false}}) {
    with_recorded_toy(3, reshard, Streams::kThread, [&](Recorded& recorded) {
      const at::Tensor loss = recorded.loss() + recorded.loss();
      Events expected = kUnshardsOfForward;
      if (reshard != ReshardAfterForward(false)) {
        expected.insert(expected.end(), kUnshardsOfForward.begin() + (reshard ? 0 : 1),
                        kUnshardsOfForward.end());
      }
      EXPECT_EQ(only("unshard", recorded.take()), expected);
      loss.backward();
      // The root's input, token ids, has no gradient to hook: it ends with the last callback.
      expected = backward_of(reshard);
      expected.insert(expected.end(), kBackward.begin(), kBackward.end());
      expected.push_back("post_backward root");
      EXPECT_EQ(without("reshard", recorded.take()), expected);
    });
  }
}

const Events kForwardInTurn = {"unshard root forward",   "unshard block0 forward",
                               "reshard block0 forward", "unshard block1 forward",
                               "reshard block1 forward", "unshard block2 forward",
                               "reshard block2 forward", "unshard block3 forward",
                               "reshard block3 forward", "reshard root forward"};
const Events kForwardOneAhead = {"unshard root forward",   "unshard block0 forward",
                                 "unshard block1 forward", "reshard block0 forward",
                                 "unshard block2 forward", "reshard block1 forward",
                                 "unshard block3 forward", "reshard block2 forward",
                                 "reshard block3 forward", "reshard root forward"};
const Events kBackwardOneAhead = {
    "unshard root pre_backward",    "unshard block3 pre_backward", "unshard block2 pre_backward",
    "reshard block3 post_backward", "post_backward block3",        "unshard block1 pre_backward",
    "reshard block2 post_backward", "post_backward block2",        "unshard block0 pre_backward",
    "reshard block1 post_backward", "post_backward block1",        "reshard block0 post_backward",
    "post_backward block0",         "reshard root post_backward",  "post_backward root"};

TEST(Prefetch, ForwardAloneOrAheadByItself) {
  with_recorded_toy(4, true, Streams::kInline, [](Recorded& recorded) {
    recorded.loss();
    EXPECT_EQ(recorded.take(), kForwardInTurn);
  });
  with_recorded_toy(4, true, Streams::kThread, [](Recorded& recorded) {
    for (int step = 0; step < 2; ++step) {  // by the order of the model, then of the last forward
      const at::Tensor loss = recorded.loss();
      EXPECT_EQ(recorded.take(), kForwardOneAhead);
      loss.backward();
      EXPECT_EQ(recorded.take(), kBackwardOneAhead);
    }
    const c10::NoGradGuard no_grad;
    recorded.loss();
    EXPECT_EQ(recorded.take(), kForwardOneAhead);
  });
}

// Block i prefetches the next `count` in `direction`, where there are as many.
void set_prefetch(ToyModel& model, int count, int direction) {
  const int num_blocks = static_cast<int>(model.blocks.size());
  for (int i = 0; i < num_blocks; ++i) {
    const int last = i + direction * count;
    if (last < 0 || last >= num_blocks) {
      continue;
    }
    std::vector<nn::Layer*> targets;
    for (int j = 1; j <= count; ++j) {
      targets.push_back(model.blocks[i + direction * j].get());
    }
    if (direction > 0) {
      set_modules_to_forward_prefetch(*model.blocks[i], targets);
    } else {
      set_modules_to_backward_prefetch(*model.blocks[i], targets);
    }
  }
}

TEST(Prefetch, ModulesToForwardPrefetch) {
  for (const Streams streams : {Streams::kInline, Streams::kThread}) {
    with_recorded_toy(4, true, streams, [](Recorded& recorded) {
      set_prefetch(*recorded.model, 1, 1);
      at::Tensor loss = recorded.loss();
      EXPECT_EQ(recorded.take(), kForwardOneAhead);
      loss.backward();
      EXPECT_EQ(recorded.take(), kBackwardOneAhead);

      set_prefetch(*recorded.model, 2, 1);
      loss = recorded.loss();
      EXPECT_EQ(recorded.take(), (Events{"unshard root forward", "unshard block0 forward",
                                         "unshard block1 forward", "unshard block2 forward",
                                         "reshard block0 forward", "unshard block3 forward",
                                         "reshard block1 forward", "reshard block2 forward",
                                         "reshard block3 forward", "reshard root forward"}));
      loss.backward();
      EXPECT_EQ(recorded.take(), kBackwardOneAhead);
    });
  }
}

TEST(Prefetch, ModulesToBackwardPrefetch) {
  with_recorded_toy(4, true, Streams::kInline, [](Recorded& recorded) {
    set_prefetch(*recorded.model, 1, -1);
    at::Tensor loss = recorded.loss();
    EXPECT_EQ(recorded.take(), kForwardInTurn);
    loss.backward();
    EXPECT_EQ(recorded.take(), kBackwardOneAhead);

    set_prefetch(*recorded.model, 2, -1);
    loss = recorded.loss();
    EXPECT_EQ(recorded.take(), kForwardInTurn);
    loss.backward();
    EXPECT_EQ(recorded.take(),
              (Events{"unshard root pre_backward", "unshard block3 pre_backward",
                      "unshard block2 pre_backward", "unshard block1 pre_backward",
                      "reshard block3 post_backward", "post_backward block3",
                      "unshard block0 pre_backward", "reshard block2 post_backward",
                      "post_backward block2", "reshard block1 post_backward",
                      "post_backward block1", "reshard block0 post_backward",
                      "post_backward block0", "reshard root post_backward", "post_backward root"}));
  });
}

// "shared", then two paths, of which one backward takes one.
class TwoPaths : public nn::Layer {
 public:
  TwoPaths() {
    const nn::LinearSpec spec{3, 3, false};
    add_child("shared", shared, std::make_shared<nn::Linear>(spec, at::TensorOptions()));
    add_child("left", left, std::make_shared<nn::Linear>(spec, at::TensorOptions()));
    add_child("right", right, std::make_shared<nn::Linear>(spec, at::TensorOptions()));
    for (const auto& parameter : named_parameters()) {
      parameter.value().detach().fill_(0.5);
    }
  }

  // The left path's output; the right one's goes to `other`.
  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x, [this](const at::Tensor& y) {
      const at::Tensor z = (*shared)(y).relu();
      const at::Tensor result = (*left)(z);
      other = (*right)(z);
      return result;
    });
  }

  std::shared_ptr<nn::Linear> shared, left, right;
  at::Tensor other;
};

TEST(Prefetch, MistargetedWhereAPathIsUnused) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    TwoPaths model;
    const FullyShardOptions options{.reshard_after_forward = true};
    for (nn::Linear* layer : {model.shared.get(), model.left.get(), model.right.get()}) {
      fully_shard(*layer, mesh, options);
    }
    fully_shard(model, mesh, options);  // no parameters are left for it
    set_streams(model, CommStreams::inline_streams());
    Events events;
    set_event_recorder(model,
                       [&](const TrainingEvent& event) { events.push_back(text_of(event)); });
    const at::Tensor left_loss = model(at::ones({2, 3})).sum();
    const at::Tensor right_loss = model.other.sum();
    EXPECT_EQ(only("unshard", std::exchange(events, {})),
              (Events{"unshard shared forward", "unshard left forward", "unshard right forward"}));

    set_is_last_backward(model, false);
    right_loss.backward({}, /*retain_graph=*/true);
    EXPECT_EQ(without("reshard", std::exchange(events, {})),
              (Events{"unshard right pre_backward",
                      "unshard left pre_backward",  // mistargeted
                      "post_backward right", "unshard shared pre_backward",
                      // It has no input with a gradient, so the last callback runs it; the left
                      // path's, too, in the order of the model, for nothing.
                      "post_backward shared", "post_backward left"}));

    set_is_last_backward(model, true);
    left_loss.backward();
    // The left path is gathered already.
    EXPECT_EQ(without("reshard", std::exchange(events, {})),
              (Events{"unshard shared pre_backward", "post_backward left", "post_backward shared",
                      "post_backward right"}));
    for (const ShardedParameter& parameter : sharded_parameters(model)) {
      EXPECT_TRUE(parameter.local.grad().defined()) << parameter.fqn;
    }
    for (const auto& parameter : model.named_parameters()) {
      EXPECT_EQ(parameter.value().storage().nbytes(), 0U) << parameter.key();
    }
  });
}

TEST(Prefetch, AMistargetedOneIsDroppedAtTheEndOfBackward) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    TwoPaths model;
    for (nn::Linear* layer : {model.shared.get(), model.left.get(), model.right.get()}) {
      fully_shard(*layer, mesh, {.reshard_after_forward = true});
    }
    fully_shard(model, mesh);
    model(at::ones({2, 3}));
    model.other.sum().backward();  // prefetches the left path in vain
    // The communicator is free again, and the next step is like any other.
    world->all_reduce(at::ones({1}), comm::ReduceOp::kSum);
    for (at::Tensor& local : std::vector<at::Tensor>(locals_of(model))) {
      local.mutable_grad().reset();
    }
    const at::Tensor left_sum = model(at::ones({2, 3})).sum();
    (left_sum + model.other.sum()).backward();
    // Each of 3 outputs of each of 2 samples has dL/dW = z, where z = relu(1.5).
    for (const ShardedParameter& parameter : sharded_parameters(model)) {
      if (parameter.fqn != "shared.weight") {
        const at::Tensor expected = at::ones(parameter.local.sizes()).mul(2 * 2 * 1.5);
        EXPECT_TRUE(parameter.local.grad().equal(expected)) << parameter.fqn;
      }
    }
  });
}

TEST(Unshard, HandleGathersAheadAndReshardFrees) {
  with_recorded_toy(2, std::nullopt, Streams::kThread, [](Recorded& recorded) {
    recorded.loss().backward();
    recorded.take();
    UnshardHandle handle = unshard(*recorded.model->blocks[0]);
    handle.wait();
    handle.wait();
    EXPECT_EQ(recorded.take(), (Events{"unshard block0 idle"}));
    const at::Tensor& weight = recorded.model->blocks[0]->in->weight;
    EXPECT_GT(weight.storage().nbytes(), 0U);
    reshard(*recorded.model->blocks[0]);
    EXPECT_EQ(weight.storage().nbytes(), 0U);
    recorded.take();
    unshard(*recorded.model->blocks[1]);  // forward waits
    const at::Tensor loss = recorded.loss();
    EXPECT_EQ(only("unshard", recorded.take()),
              (Events{"unshard block1 idle", "unshard root forward", "unshard block0 forward"}));
    loss.backward();
  });
}

TEST(Unshard, BeforeTheFirstForward) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const auto model = make_sharded_toy({}, mesh, {});
    unshard(*model->blocks[0]).wait();
    const auto expected = make_reference_toy({});
    EXPECT_TRUE(model->blocks[0]->in->weight.equal(expected->blocks[0]->in->weight));
    const ToyBatch batch = toy_batch({}, 0, 4);
    EXPECT_TRUE(model->loss_sum(batch.tokens, batch.targets)
                    .equal(expected->loss_sum(batch.tokens, batch.targets)));
  });
}

TEST(Unshard, NotInBackwardWhereToldSo) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, 4), world->rank(), 2);
    std::vector<at::Tensor> expected;
    for (const bool enabled : {true, false}) {
      auto model = std::make_shared<ToyModel>(ToySpec{}, at::TensorOptions(at::kMeta));
      fully_shard(*model->embed_tokens, mesh);
      fully_shard(*model, mesh);
      materialize(*model, at::kCPU, initialize_toy);
      set_unshard_in_backward(*model->embed_tokens, enabled);  // its gradient needs ids alone
      Events events;
      set_event_recorder(*model,
                         [&](const TrainingEvent& event) { events.push_back(text_of(event)); });
      const at::Tensor loss = model->loss_sum(batch.tokens, batch.targets);
      events.clear();
      loss.backward();
      EXPECT_EQ(only("unshard", events),
                enabled ? Events{"unshard embed_tokens pre_backward"} : Events{});
      for (const at::Tensor& local : locals_of(*model)) {
        if (enabled) {
          expected.push_back(local.grad());
        } else {
          EXPECT_TRUE(local.grad().equal(expected.front()));
          expected.erase(expected.begin());
        }
      }
    }
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp
