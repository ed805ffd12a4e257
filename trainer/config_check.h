#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// Fills in what follows from other keys: num_kv_heads, head_dim, validation.local_batch_size,
// tokenizer.path beside initial_load_path, and the parts that define an architecture (qwen2: biases
// on q, k, v; qwen3: q/k norm). Idempotent. Leaves 0 where its source is still unknown.
void complete(TrainConfig& config);

struct ConfigProblem {
  std::string key;   // the one to blame, "model.num_heads"
  std::string text;  // "expected ..., got ...; remedy"
};

// The first contradiction between keys, values of one key alone being the reader's business. With
// model.initial_load_path the shape is judged once it has been filled in (dim > 0), so call again
// then.
std::optional<ConfigProblem> find_problem(const TrainConfig& config);

// Throws ConfigError "key: text" for find_problem.
void check(const TrainConfig& config);

// How the ranks of a run divide a step.
struct RankPlan {
  int64_t replicate_degree = 1;
  int64_t shard_degree = 1;
  int64_t global_batch_size = 0;   // windows of a step
  int64_t accumulation_steps = 1;  // forward passes of a rank in a step

  int64_t world_size() const { return replicate_degree * shard_degree; }
};

// Throws ConfigError where the mesh does not fit `world_size` ranks or they cannot divide the
// batch.
RankPlan plan_ranks(const TrainConfig& config, int64_t world_size);

}  // namespace narrowgauge::trainer
