#pragma once

#include <cstdint>
#include <string>

#include "nn/transformer_config.h"

namespace narrowgauge::plan {

// What a block computes again in backward: nothing, norms and SwiGLU, or everything.
enum class Recompute { kNone, kSelective, kFull };

// What decides a run's memory and speed, as one rank sees it. plan/ computes with these numbers
// alone: no file, no device, no torch.
struct TrainingSpec {
  nn::TransformerConfig model;  // complete: every size above 0

  int64_t seq_len = 0;           // tokens in a window
  int64_t local_batch_size = 0;  // windows of a forward pass
  int64_t accumulation_steps = 1;
  int64_t replicate_degree = 1;
  int64_t shard_degree = 1;

  int64_t param_bytes = 2;            // an element in compute: 2 bfloat16, 4 float32
  int64_t reduce_bytes = 4;           // an element in the reduction of gradients
  bool reshard_after_forward = true;  // blocks; the root stays gathered
  int64_t reshard_ranks =
      0;  // blocks keep 1 / this of what they gathered until backward; 0: nothing
  bool cpu_offload = false;  // training.enable_cpu_offload

  std::string optimizer = "AdamW";      // optimizer.name
  bool early_step_in_backward = false;  // the same key of section optimizer
  std::string float8_recipe = "none";   // float8.recipe_name
  bool float8_all_gather = false;       // float8.enable_fsdp_float8_all_gather
  Recompute recompute = Recompute::kNone;
  int64_t recompute_every_nth = 1;  // blocks n, 2n, ... counted from 1

  int64_t local_tokens() const { return seq_len * local_batch_size; }  // of a forward pass
  int64_t world_size() const { return replicate_degree * shard_degree; }
  int64_t tokens_per_step() const { return local_tokens() * accumulation_steps * world_size(); }
  bool uses_float8() const { return float8_recipe != "none"; }
  // Whether block `index`, counted from 0, is recomputed.
  bool recomputes(int64_t index) const {
    return recompute != Recompute::kNone && (index + 1) % recompute_every_nth == 0;
  }
};

}  // namespace narrowgauge::plan
