#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fsdp/comm_streams.h"
#include "fsdp/fsdp_param.h"
#include "fsdp/training_event.h"
#include "nn/layer.h"

// What can be done with a layer once fully_shard has run: the methods of FSDP2's FSDPModule.
//
// Functions that take a `root` reach every group at and below it; those that take a `layer`, its
// own. They throw c10::Error where there is none.

namespace narrowgauge::fsdp {

class FSDPState;

// ---- gradient accumulation ----

// With `enabled` false, backward leaves gradients on their rank, summed in reduce_dtype; the first
// backward after `enabled` is true again reduces the sum. For all micro-batches but the last.
void set_requires_gradient_sync(nn::Layer& root, bool enabled);

// With `enabled` false, backward reduces over the shard axis alone and adds up the results, which
// are 1/shards of the gradients; the first backward after `enabled` is true again reduces the sum
// over the replicate axis. Less memory than no synchronisation, fewer bytes than all of it.
void set_requires_all_reduce(nn::Layer& root, bool enabled);

// With `enabled` false, parameters stay gathered after backward, for the next micro-batch. Where an
// optimizer's step may have come between (the last backward reduced gradients, see
// set_is_last_backward) trainable ones are gathered anew, and frozen ones stay.
void set_reshard_after_backward(nn::Layer& root, bool enabled);

// With `enabled` false, another backward comes before the optimizer's step, and this one may return
// while it still reduces: until one with true has ended, gradients are incomplete and no
// communicator of the mesh may be used.
void set_is_last_backward(nn::Layer& root, bool enabled);

// ---- gathering ----

// Overrides FullyShardOptions::reshard_after_forward, for one group or also for those below.
void set_reshard_after_forward(nn::Layer& layer, bool enabled, bool recurse = true);

// With `enabled` false, backward does not gather the layer's parameters: right where it does not
// need them, as for an embedding table.
void set_unshard_in_backward(nn::Layer& layer, bool enabled);

// The groups to start gathering in the layer's forward, or backward, before it computes, in this
// order. Replaces the default, which is the next group alone: in forward as the last forward went
// (as the model is built, the first time; only with asynchronous streams), in backward against the
// order of forward. Costs the memory of as many gathered groups. Empty: the default again.
void set_modules_to_forward_prefetch(nn::Layer& layer, const std::vector<nn::Layer*>& layers);
void set_modules_to_backward_prefetch(nn::Layer& layer, const std::vector<nn::Layer*>& layers);

// An unshard under way. May be dropped: the layer's forward waits, too.
class UnshardHandle {
 public:
  explicit UnshardHandle(std::shared_ptr<FSDPState> state) : state_(std::move(state)) {}
  // Returns when the layer's parameters may be used. Has no effect the second time.
  void wait();

 private:
  std::shared_ptr<FSDPState> state_;
};

// Starts to gather the layer's parameters, beside the caller if the root has run once, and frees
// them. Until the handle has been waited for, no communicator of the mesh may be used. Collective.
UnshardHandle unshard(nn::Layer& layer);
void reshard(nn::Layer& layer);

// Keeps all parameters of `root` gathered while it lives, so that many forwards without gradients
// (generation, evaluation) gather once. They must not change meanwhile. Collective when made.
class GatheredParameters {
 public:
  explicit GatheredParameters(nn::Layer& root);
  ~GatheredParameters();
  GatheredParameters(const GatheredParameters&) = delete;
  GatheredParameters& operator=(const GatheredParameters&) = delete;

 private:
  nn::Layer& root_;
};

// ---- how it runs ----

// Called with the sharded parameter `fqn` (from the root) each time its .grad() is complete in
// backward: a step of an optimizer that then resets the gradient, so that not all gradients live at
// once. The parameter's layer must not run twice in a forward. Null: no hook.
void set_post_accumulate_grad_hook(nn::Layer& root, const std::string& fqn,
                                   FSDPParam::PostAccumulateGradHook hook);

// Makes all groups below `root`, and it the root of them, use these streams. Default: where there
// are collectives, CommStreams::beside the device of the parameters, else the caller. A root that
// runs inside the forward of another on the same mesh must share its streams. REQUIRES: outside
// forward and backward.
void set_streams(nn::Layer& root, CommStreams streams);

// Tells `recorder` from now on; null: nobody.
void set_event_recorder(nn::Layer& root, EventRecorder recorder);

}  // namespace narrowgauge::fsdp
