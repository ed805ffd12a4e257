#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/fully_shard.h"
#include "nn/embedding.h"
#include "nn/layer.h"
#include "nn/linear.h"

namespace narrowgauge::fsdp {

// x + out(relu(in(x))): its parameters belong to its children, as in a transformer block.
class ToyBlock : public nn::Layer {
 public:
  ToyBlock(int64_t dim, int64_t hidden, const at::TensorOptions& options);
  at::Tensor operator()(const at::Tensor& x);

  std::shared_ptr<nn::Linear> in;
  std::shared_ptr<nn::Linear> out;
};

struct ToySpec {
  int64_t vocab = 11;
  int64_t dim = 5;
  int64_t hidden = 7;
  int64_t num_blocks = 3;
  bool tied = false;  // the head is the table of the embedding
};

// Embedding, blocks, head. Sizes are odd on purpose: no number of ranks divides them.
class ToyModel : public nn::Layer {
 public:
  ToyModel(const ToySpec& spec, const at::TensorOptions& options);
  // tokens: [batch, t] -> logits [batch, t, vocab].
  at::Tensor operator()(const at::Tensor& tokens);
  // The sum over all tokens of -log p(target), in fp32.
  at::Tensor loss_sum(const at::Tensor& tokens, const at::Tensor& targets);

  std::shared_ptr<nn::Embedding> embed_tokens;
  std::vector<std::shared_ptr<ToyBlock>> blocks;
  std::shared_ptr<nn::Linear> lm_head;
};

// The value of rows [row_begin, row_begin + shard.size(0)) of parameter `fqn`: a function of name
// and position alone, so that every sharding begins alike.
void initialize_toy(const std::string& fqn, at::Tensor shard, int64_t row_begin);

// Built on meta, each block and the root sharded, materialized by initialize_toy.
std::shared_ptr<ToyModel> make_sharded_toy(const ToySpec& spec, const comm::DeviceMesh& mesh,
                                           const FullyShardOptions& options);

// The same model without sharding, in fp32.
std::shared_ptr<ToyModel> make_reference_toy(const ToySpec& spec);

// The global batch of `step`: tokens and targets [batch, 4].
struct ToyBatch {
  at::Tensor tokens;
  at::Tensor targets;
};
ToyBatch toy_batch(const ToySpec& spec, int64_t step, int64_t batch);
// The sequences that `rank` of `size` takes.
ToyBatch slice_of_rank(const ToyBatch& batch, int rank, int size);

// Whole parameters by name, gathered. Collective.
std::map<std::string, at::Tensor> full_parameters(nn::Layer& root, const comm::DeviceMesh& mesh);

// One step of Adam (Kingma and Ba 2015; betas 0.9 and 0.95, eps 1e-8) on a list of leaves.
class ToyAdam {
 public:
  ToyAdam(std::vector<at::Tensor> parameters, double lr);
  // Then resets the gradients, in turn to none and to zeros.
  void step();

 private:
  std::vector<at::Tensor> parameters_;
  std::vector<at::Tensor> exp_avg_;
  std::vector<at::Tensor> exp_avg_sq_;
  double lr_;
  int64_t num_steps_ = 0;
};

// The leaves of sharded_parameters(root).
std::vector<at::Tensor> locals_of(nn::Layer& root);

}  // namespace narrowgauge::fsdp
